"""Preemption: on SIGTERM, Ctrl-C, or SIGUSR1 from SLURM (which also requeues the job), all ranks save and exit.

A signal reaches some of a run's processes at any moment, but all of them must stop at the same step. Between steps and
between batches the ranks agree (``any_of``, ``leave_validation``). During long work that ranks do independently, each
stops as soon as it hears of the signal, and they agree at the end (``preemptible``).
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl

_PATIENCE = 2.0
"""Seconds within which a second signal counts as the first: a job and its launcher both forward it"""

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")

_KEY = "align/preempted"

_POLL_INTERVAL = 0.5
"""Seconds between two polls of the other ranks: each is a round trip to rank 0"""


class Preempted(Exception):
    """The run was preempted and can be resumed.

    Attributes:
        step: optimizer steps that were saved.
        checkpoint: the checkpoint to resume from; None: no step was made yet.
    """

    step = 0
    checkpoint: str | None = None

    def __str__(self) -> str:
        """One line for the user."""
        saved = f"saved {self.checkpoint}" if self.checkpoint else "nothing to save yet"
        return f"preempted at step {self.step}: {saved}"


class _Request:
    """The signal received, and when. Signals belong to the process, so there is one for all runs."""

    signal: int | None = None
    time = 0.0
    announced = False
    polled = 0.0


def listen() -> None:
    """Replace Lightning's signal handlers and Python's of SIGINT, which end a run without a checkpoint.

    The first signal is recorded (``asked``), a second one ends the process. Does nothing outside the main thread, where
    Python can't install handlers.
    """
    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), _note)


def release_interrupt() -> None:
    """After training: SIGINT raises KeyboardInterrupt again."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _note:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def forget() -> None:
    """Forget an earlier signal, for a new run."""
    _Request.signal, _Request.announced = None, False


def asked() -> bool:
    """Whether this process received a signal."""
    return _Request.signal is not None


def interrupted() -> bool:
    """Whether that signal was SIGINT."""
    return _Request.signal == signal.SIGINT


def any_of(trainer: "pl.Trainer", *flags: bool) -> tuple[bool, ...]:
    """Which flags are set on any rank. A collective: call it on all of them."""
    if trainer.world_size == 1:
        return flags
    import torch

    counts = torch.tensor([float(flag) for flag in flags], device=trainer.strategy.root_device)
    return tuple(bool(count) for count in trainer.strategy.reduce(counts, reduce_op="sum"))


def leave_validation(trainer: "pl.Trainer") -> None:
    """Between two batches of a validation during ``fit``, on all ranks: exit if any rank was asked to.

    Not after the run's last step, since Lightning does not resume a run that has made all its steps; nor when the run
    is stopping early (``should_stop``), since it would train on; nor inside an optimizer step, since accumulated
    gradients are in no checkpoint.

    Raises:
        Preempted: on all ranks or on none.
    """
    from align.training.lightning_internals import accumulating

    training = trainer.validating and trainer.state.fn == "fit" and not trainer.fast_dev_run  # type: ignore[attr-defined]
    over = trainer.global_step == trainer.max_steps or trainer.should_stop
    if training and not over and not accumulating(trainer) and any_of(trainer, asked())[0]:
        raise Preempted


@contextmanager
def preemptible(trainer: "pl.Trainer", *, alone: bool = True) -> Iterator[Callable[[], None]]:
    """Work that all ranks abandon when any of them is asked to exit; they agree at its end.

    Args:
        trainer: of the run.
        alone: no rank waits for another inside, so each may stop anywhere.

    Yields:
        A function to call often inside; it abandons this rank's work.

    Raises:
        Preempted: at the end, on all ranks or on none.
    """

    def check() -> None:
        if alone and _heard(trainer):
            raise Preempted

    stopped = False
    try:
        yield check
    except Preempted:
        stopped = True
    if any_of(trainer, stopped or asked())[0]:
        _withdraw(trainer)
        raise Preempted


def _withdraw(trainer: "pl.Trainer") -> None:
    """Clear the announcement once all ranks have heard it, for the next run of these processes."""
    _Request.announced = False
    if trainer.world_size > 1 and trainer.is_global_zero:
        _store().delete_key(_KEY)
    any_of(trainer, False)  # a barrier: nobody continues before it is cleared


def _heard(trainer: "pl.Trainer") -> bool:
    """Whether this process was asked, or another rank announced it; does not block."""
    if trainer.world_size == 1:
        return asked()
    now = time.monotonic()
    if asked():
        if not _Request.announced:
            _store().set(_KEY, "1")
            _Request.announced = True
        return True
    if now - _Request.polled < _POLL_INTERVAL:
        return False
    _Request.polled = now
    return bool(_store().check([_KEY]))


def _store() -> Any:
    """The key-value store of the process group."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def _note(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _Request.signal is None:
        _Request.signal, _Request.time = number, now
        # Not print: the signal may interrupt one.
        name = signal.Signals(number).name
        os.write(2, f"{name}: saving a checkpoint, then exiting; send the signal again to exit now\n".encode())
    elif now - _Request.time > _PATIENCE:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def requeue() -> str | None:
    """Requeue this SLURM job, if SIGUSR1 asked for it (``sbatch --signal=SIGUSR1@SECONDS``).

    Returns:
        str: a line for the user; None outside SLURM or for another signal.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or _Request.signal != getattr(signal, "SIGUSR1", None):
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"SLURM could not requeue job {job} ({' '.join(str(error).split())}); submit it again"
    return f"SLURM requeued job {job}"
