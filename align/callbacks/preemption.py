"""Being asked to leave: SIGTERM, and SIGUSR1 of a SLURM job that is to be queued again."""

import os
import signal
import subprocess
import threading
import time
from types import FrameType

_PATIENCE = 2.0
"""Seconds within which a second signal is the same wish: a job and its launcher both pass it on"""
_SIGNALS = ("SIGTERM", "SIGUSR1")


class Preempted(Exception):
    """The run was asked to leave, and can be taken up again.

    Attributes:
        step: optimizer steps that were done.
        checkpoint: what to go on from.
    """

    def __init__(self, step: int, checkpoint: str) -> None:
        """Keep both."""
        super().__init__(f"preempted at step {step}: wrote {checkpoint}")
        self.step, self.checkpoint = step, checkpoint


class _Wish:
    """The signal that came, and when; signals are the process's, so there is one."""

    signal: int | None = None
    at = 0.0


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
    _Wish.signal = None


def asked() -> bool:
    """Whether this process was asked to leave."""
    return _Wish.signal is not None


def _note(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _Wish.signal is None:
        _Wish.signal, _Wish.at = number, now
        # Not print: the signal may come in the middle of one.
        os.write(2, f"{signal.Signals(number).name}: leaving after this step; again: at once\n".encode())
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
