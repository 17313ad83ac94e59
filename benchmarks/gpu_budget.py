"""The time limit of benchmarks/gpu.py, in seconds from the start of the process.

Imports nothing slow, and its name sorts before the modules that are slow to import, so that their time counts too.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_BEGUN = time.perf_counter()
_AGAIN = 2.0
"""Seconds after which the alarm rings again: in a weak reference's callback, for one, Python drops what is raised"""


class OutOfTime(TimeoutError):
    """The time limit of ``until`` has passed."""


def spent() -> float:
    """Seconds since the process started."""
    return time.perf_counter() - _BEGUN


@contextmanager
def until(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside the block once the process has run for this many seconds.

    On systems with SIGALRM, between two bytecodes of the main thread; elsewhere only at the start of the block. An
    earlier alarm (a test's) is restored afterwards.
    """
    left = seconds - spent()
    if left <= 0:
        raise OutOfTime
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise OutOfTime

    handler = signal.signal(signal.SIGALRM, ring)
    earlier = signal.getitimer(signal.ITIMER_REAL)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, left, _AGAIN)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        # Also if the alarm fired just before it was cancelled.
        signal.setitimer(signal.ITIMER_REAL, *earlier)
        signal.signal(signal.SIGALRM, handler)


def out_of_time(error: BaseException | None) -> bool:
    """Whether an error is OutOfTime or was caused by it: torch's compiler raises its own error instead."""
    while error is not None and not isinstance(error, OutOfTime):
        error = error.__cause__ or error.__context__
    return error is not None
