"""An answer on the event loop, in pieces as large as the wait for them was long."""

import asyncio
import contextlib

from align.serve.process import EngineProcess
from align.serve.requests import Piece, Request

# Chunks a second of all streams together: what a stream gets beyond its share travels with its next chunk.
_CHUNKS_PER_S = 500
_SLOWEST = 0.1  # seconds between two chunks of a stream, at most


class Answer:
    """The pieces of one answer; what came since the last look is handed over as one."""

    def __init__(self, engine: EngineProcess, request: Request) -> None:
        """Submit the request.

        Raises:
            ValueError: the prompt cannot be answered.
            EngineFull: too many wait.
            EngineFailed: the engine answers nobody.
        """
        self._engine = engine
        self._pieces: list[Piece] = []
        self._come, self._over = asyncio.Event(), asyncio.Event()
        self._number = engine.submit(request, self._on_piece)

    def _on_piece(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._come.set()
        if piece.reason is not None:
            self._over.set()

    async def next(self) -> Piece:
        """All that has come, once something has."""
        await self._come.wait()
        self._come.clear()
        pieces, self._pieces = self._pieces, []
        return pieces[-1]._replace(text="".join(piece.text for piece in pieces))

    async def pause(self) -> None:
        """Let some more of it come; not longer than until the end, for the client's next request may wait for that."""
        pause = min(self._engine.running / _CHUNKS_PER_S, _SLOWEST)
        if pause == 0:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._over.wait()

    def cancel(self) -> None:
        """Nobody listens any more; harmless when it is over."""
        self._engine.cancel(self._number)
