"""The seconds that benchmarks/gpu.py may take, counted from the process's start.

Imports nothing that takes long, and its name sorts before what does, so that those imports count too.
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
    """The seconds of ``until`` are over."""


def spent() -> float:
    """Seconds since the process began."""
    return time.perf_counter() - _BEGUN


@contextmanager
def until(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside once the process has run for so many seconds.

    Between two steps of Python, in the main thread, where the system has such an alarm; elsewhere only at the start.
    An alarm that was set before (a test's) is set again afterwards.
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
        # Also where it rang just before it was stopped.
        signal.setitimer(signal.ITIMER_REAL, *earlier)
        signal.signal(signal.SIGALRM, handler)


def out_of_time(error: BaseException | None) -> bool:
    """Whether an error is OutOfTime, or what somebody made of it: torch's compiler raises its own instead."""
    while error is not None and not isinstance(error, OutOfTime):
        error = error.__cause__ or error.__context__
    return error is not None
