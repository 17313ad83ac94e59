"""An answer's way from the engine's thread to the event loop."""

import asyncio
import contextlib
from collections import deque

from align.serve.engine import Engine, Piece, Request

# Chunks a second of all streams together: what a stream gets beyond its share travels with its next chunk. Writing each
# token by itself would take the time that sampling needs.
_CHUNKS_PER_S = 500
_SLOWEST = 0.1  # seconds between two chunks of a stream, at most


class Answer:
    """The pieces of one answer; what came since the last look is handed over as one."""

    def __init__(self, engine: Engine, request: Request) -> None:
        """Submit the request; to be made on the event loop.

        Raises:
            ValueError: the prompt cannot be answered.
            EngineFull: too many wait.
            EngineFailed: the engine answers nobody.
        """
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self._pieces: deque[Piece] = deque()
        self._come, self._over = asyncio.Event(), asyncio.Event()
        self._asleep = False
        self._ticket = engine.submit(request, self._on_piece)

    def _on_piece(self, piece: Piece) -> None:
        # On the engine's thread. Waking the loop costs a system call, so it is left alone while it is awake.
        self._pieces.append(piece)
        if piece.reason is not None:
            self._loop.call_soon_threadsafe(self._over.set)
        if self._asleep:
            self._asleep = False
            self._loop.call_soon_threadsafe(self._come.set)

    async def next(self) -> Piece:
        """All that has come, once something has."""
        # In this order: a piece that comes in between is either seen here or wakes.
        self._come.clear()
        self._asleep = True
        if not self._pieces:
            await self._come.wait()
        self._asleep = False
        pieces = [self._pieces.popleft() for _ in range(len(self._pieces))]
        return pieces[-1]._replace(text="".join(piece.text for piece in pieces))

    async def pause(self) -> None:
        """Let some more of it come; not longer than until the end, for the client's next request may wait for that."""
        pause = min(self._engine.running / _CHUNKS_PER_S, _SLOWEST)
        if pause == 0:
            return
        # All streams look at one time: each look of its own would take the interpreter from the engine once more.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause - self._loop.time() % pause):
                await self._over.wait()

    def cancel(self) -> None:
        """Nobody listens any more; harmless when it is over."""
        self._engine.cancel(self._ticket)
