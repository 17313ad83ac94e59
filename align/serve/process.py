"""An engine in a process of its own, so that neither computing nor the event loop waits for the other's interpreter.

This side needs no torch and keeps no thread: all of it runs on the event loop.
"""

import asyncio
import contextlib
import multiprocessing
import pickle
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from align.serve.requests import EngineFailed, EngineFull, Piece, Request, check_prompt
from align.serve.worker import LENGTH, Ready, Round, packed, unpacked, work

if TYPE_CHECKING:
    from align.model.gpt import GPT
    from align.tokenizer import Tokenizer

_SPAWN = multiprocessing.get_context("spawn")
_END_SECONDS = 10.0


class EngineProcess:
    """What ``Engine`` is, on the event loop, with the computing elsewhere.

    Attributes:
        tokenizer: the network's own.
        max_rows: requests answered at once.
        max_length: longest prompt and answer together, tokens.
        cache_bytes: memory of keys and values.
        failure: why no requests are taken, or None.
    """

    def __init__(
        self, load: "Callable[[], tuple[GPT, Tokenizer]]", *, max_rows: int, max_length: int | None = None,
        max_waiting: int = 64,
    ) -> None:  # fmt: skip
        """Start the process and wait until it has loaded.

        Args:
            load: gives network and tokenizer; called in the other process, so it must be picklable.
            max_rows: requests answered at once.
            max_length: longest prompt and answer together, tokens; None means the network's context.
            max_waiting: requests that may wait for a row.

        Raises:
            ValueError: a number is impossible, or network and tokenizer are not a pair.
            EngineFailed: the process has ended.
            Exception: what ``load`` raised.
        """
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self.failure: str | None = None
        self._listeners: dict[int, Callable[[Piece], None]] = {}
        self._asked = self._over = 0
        self._writer: asyncio.StreamWriter | None = None
        self._line, theirs = socket.socketpair()
        # It may still have as many rows as were cancelled here just now. Who is let in is decided here.
        settings = {"max_rows": max_rows, "max_length": max_length, "max_waiting": max_waiting + max_rows}
        self._process = _SPAWN.Process(target=work, args=(load, theirs, settings), name="align-engine", daemon=True)
        with theirs:
            self._process.start()
        try:
            ready = self._wait_until_ready()
        except BaseException:
            self._process.kill()
            self.close()
            raise
        self.tokenizer, self.max_length, self._vocabulary, self.cache_bytes = ready

    def _wait_until_ready(self) -> Ready:
        # A buffered reader may take more than the first message; before a request is sent there is no more.
        with self._line.makefile("rb") as line:
            for message in unpacked(line):
                if isinstance(message, Exception):
                    raise message
                return message
        self._process.join(_END_SECONDS)
        raise EngineFailed(f"{self._obituary()} while it loaded the model")

    @property
    def pid(self) -> int | None:
        """Of the engine's process."""
        return self._process.pid

    @property
    def running(self) -> int:
        """Requests being answered."""
        return min(self._asked - self._over, self.max_rows)

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return self._asked - self._over - self.running

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Requests are taken inside, on this event loop; once."""
        reader, self._writer = await asyncio.open_connection(sock=self._line)
        listening = asyncio.ensure_future(self._listen(reader))
        try:
            yield
        finally:
            listening.cancel()
            self._writer.close()

    def submit(self, request: Request, on_piece: Callable[[Piece], None]) -> int:
        """Ask for an answer.

        Args:
            request: its prompt must leave room for an answer.
            on_piece: called on the event loop with each piece of the answer, the last of which has a reason.

        Returns:
            int: to cancel it with.

        Raises:
            ValueError: the prompt is empty, too long, or holds an id the network does not know.
            EngineFull: as many wait as may.
            EngineFailed: the engine is closed or broken.
        """
        check_prompt(request.prompt, max_length=self.max_length, vocabulary=self._vocabulary)
        if self.failure is not None:
            raise EngineFailed(self.failure)
        if self.waiting >= self.max_waiting and self.running == self.max_rows:
            raise EngineFull(f"{self.running} requests are being answered and {self.waiting} wait")
        self._asked += 1
        self._listeners[self._asked] = on_piece
        self._send((self._asked, request))
        return self._asked

    def cancel(self, number: int) -> None:
        """Give a request up: it gets no more pieces, and its row is free by the next step. Harmless when it is over."""
        if self._listeners.pop(number, None) is not None:
            self._send((number, None))

    def close(self) -> None:
        """End the process; at once if it does not end by itself."""
        self._fail("the engine is closed")
        self._line.close()
        self._process.join(_END_SECONDS)
        self._process.kill()
        self._process.join()

    def __enter__(self) -> "EngineProcess":
        """The engine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _send(self, message: tuple[int, Request | None]) -> None:
        assert self._writer is not None, "requests are taken inside `connected` only"
        self._writer.write(packed(message))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while self.failure is None:
                size = int.from_bytes(await reader.readexactly(LENGTH), "big")
                self._take(pickle.loads(await reader.readexactly(size)))
        except (asyncio.IncompleteReadError, ConnectionError):
            await asyncio.to_thread(self._process.join, _END_SECONDS)
            self._fail(self._obituary())
        except Exception as error:  # of ours: whoever waits must not wait for ever
            self._fail(f"{type(error).__name__}: {error}")

    def _take(self, news: Round) -> None:
        self._over = news.over
        for number, *fields in news.pieces:
            piece = Piece(*fields)
            # A cancelled one gets no more.
            on_piece = self._listeners.get(number) if piece.reason is None else self._listeners.pop(number, None)
            if on_piece is not None:
                on_piece(piece)
        if news.failure is not None:
            self._fail(news.failure)

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        listeners, self._listeners = self._listeners, {}
        for on_piece in listeners.values():
            on_piece(Piece("", 0, "failed", self.failure))

    def _obituary(self) -> str:
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"the engine's process ended unasked (exit code {code})"
        hint = "; was the memory short?" if -code == signal.SIGKILL else ""
        return f"the engine's process was killed by {signal.Signals(-code).name}{hint}"
