"""Map a function over items on several processes, in order and in bounded memory."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")

Result = TypeVar("Result")

CHUNK_CHARS = 1 << 20
"""Characters of text sent to a process at once"""

_function: Callable[[Any], Any]


def chunked(texts: Iterable[str], size: int = CHUNK_CHARS) -> Iterator[list[str]]:
    """Group texts into lists of about ``size`` characters."""
    chunk: list[str] = []
    held = 0
    for text in texts:
        chunk.append(text)
        held += len(text)
        if held >= size:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """``map(function, items)`` on several processes; at most two items per process are read ahead.

    The function is inherited by fork where the system supports it, without copying its data; elsewhere it is pickled.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    waiting: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_hold, initargs=(function,)) as pool:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _hold(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function


def _call(item: Any) -> Any:
    return _function(item)
