"""Being asked to leave: SIGTERM, and SIGUSR1 of a SLURM job that is to be queued again; and leaving together.

Signals come to some of a run's processes, at any moment, and all of them have to leave at the same place. Between steps
and between batches all ranks meet (``any_of``, ``leave_validation``). Where each works on its own for long, they give
up one after another, and meet at its end (``breaking_off``).
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
"""Seconds within which a second signal is the same wish: a job and its launcher both pass it on"""

_SIGNALS = ("SIGTERM", "SIGUSR1")

_KEY = "align/asked_to_leave"

_GLANCE = 0.5
"""Seconds between two looks at what other ranks say: each is a round trip to the first one"""


class Preempted(Exception):
    """The run was asked to leave, and can be taken up again.

    Attributes:
        step: optimizer steps that are kept.
        checkpoint: what to go on from; None: nothing was learned yet.
    """

    step = 0
    checkpoint: str | None = None

    def __str__(self) -> str:
        """For the user."""
        wrote = f"wrote {self.checkpoint}" if self.checkpoint else "nothing to keep yet"
        return f"preempted at step {self.step}: {wrote}"


class _Wish:
    """The signal that came, and when; signals are the process's, so there is one."""

    signal: int | None = None
    at = 0.0
    told = False
    glanced = 0.0


def listen() -> None:
    """Take the signals over from Lightning, which ends a run at SIGTERM without a checkpoint.

    The first one is noted (``asked``), a second one ends the process as if nobody listened. Outside the main thread
    nothing can be taken over.
    """
    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), _note)


def forget() -> None:
    """A new run was not asked yet."""
    _Wish.signal, _Wish.told = None, False


def asked() -> bool:
    """Whether this process was asked to leave."""
    return _Wish.signal is not None


def any_of(trainer: "pl.Trainer", *wishes: bool) -> tuple[bool, ...]:
    """Which of some wishes any process of the run has; call it on all of them."""
    if trainer.world_size == 1:
        return wishes
    import torch

    held = torch.tensor([float(wish) for wish in wishes], device=trainer.strategy.root_device)
    return tuple(bool(wish) for wish in trainer.strategy.reduce(held, reduce_op="sum"))


def accumulating(trainer: "pl.Trainer") -> bool:
    """Whether the micro-batch that was computed last leaves its gradients to a later one's optimizer step."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def leave_validation(trainer: "pl.Trainer") -> None:
    """Between two batches of a validation of training's, on all ranks: leave, if one of them was asked to.

    Not behind the run's last step: Lightning takes up no run that has made all of its steps, and one that was told to
    stop (``should_stop``) would go on. Nor between the micro-batches of a step: what they add up is in no checkpoint.

    Raises:
        Preempted: on all ranks or on none.
    """
    training = trainer.validating and trainer.state.fn == "fit" and not trainer.fast_dev_run  # type: ignore[attr-defined]
    over = trainer.global_step == trainer.max_steps or trainer.should_stop
    if training and not over and not accumulating(trainer) and any_of(trainer, asked())[0]:
        raise Preempted


@contextmanager
def breaking_off(trainer: "pl.Trainer", *, alone: bool = True) -> Iterator[Callable[[], None]]:
    """Work that is thrown away on all ranks when one of them is asked to leave; they meet at its end.

    Args:
        trainer: of the run.
        alone: no rank waits for another within, so that each may stop where it is.

    Yields:
        What to call often within: it gives up this rank's part.

    Raises:
        Preempted: at the end, on all ranks or on none.
    """

    def go_on() -> None:
        if alone and _heard(trainer):
            raise Preempted

    left = False
    try:
        yield go_on
    except Preempted:
        left = True
    if any_of(trainer, left or asked())[0]:
        _withdraw(trainer)
        raise Preempted


def _withdraw(trainer: "pl.Trainer") -> None:
    """All ranks heard it: what this group of processes trains next was not asked to leave."""
    _Wish.told = False
    if trainer.world_size > 1 and trainer.is_global_zero:
        _store().delete_key(_KEY)
    any_of(trainer, False)  # nobody goes on before it is gone


def _heard(trainer: "pl.Trainer") -> bool:
    """Whether this process was asked, or another one said so; nobody waits."""
    if trainer.world_size == 1:
        return asked()
    now = time.monotonic()
    if asked():
        if not _Wish.told:
            _store().set(_KEY, "1")
            _Wish.told = True
        return True
    if now - _Wish.glanced < _GLANCE:
        return False
    _Wish.glanced = now
    return bool(_store().check([_KEY]))


def _store() -> Any:
    """What the ranks found each other by."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def _note(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _Wish.signal is None:
        _Wish.signal, _Wish.at = number, now
        # Not print: the signal may come in the middle of one.
        os.write(2, f"{signal.Signals(number).name}: leaving soon; again: at once\n".encode())
    elif now - _Wish.at > _PATIENCE:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def requeue() -> str | None:
    """Have SLURM queue this job again, if SIGUSR1 asked for that (``sbatch --signal=SIGUSR1@SECONDS``).

    Returns:
        str: what to tell the user; None where there is nothing to tell.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or _Wish.signal != getattr(signal, "SIGUSR1", None):
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"SLURM did not queue job {job} again ({' '.join(str(error).split())}): submit it anew"
    return f"SLURM queued job {job} again"
