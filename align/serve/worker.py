"""What runs in the engine's process: a thread that computes, one that listens, one message for each round.

Messages are pickles behind their length in four bytes. The parent sends ``(number, Request)``, ``(number, None)`` to
cancel; it gets a ``Ready`` or the exception that ended loading, then a ``Round`` for each round that has news.
"""

import contextlib
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from align.serve.requests import EngineFailed, EngineFull, Piece, Request
from align.tokenizer import Tokenizer

if TYPE_CHECKING:
    from align.model.gpt import GPT
    from align.serve.engine import Engine, Ticket

LENGTH = 4  # bytes of a message's length


class Ready(NamedTuple):
    """The engine takes requests.

    Attributes:
        tokenizer: the network's own.
        max_length: longest prompt and answer together, tokens.
        vocabulary: how many ids the network knows.
        cache_bytes: memory of keys and values.
    """

    tokenizer: Tokenizer
    max_length: int
    vocabulary: int
    cache_bytes: int


class Round(NamedTuple):
    """What is new since the last.

    Attributes:
        over: requests that have left since the start, cancelled ones included.
        failure: why the engine has stopped; None while it goes on.
        pieces: number of the request and fields of the ``Piece``, in the order they came.
    """

    over: int
    failure: str | None
    pieces: list[tuple[Any, ...]]


def packed(message: object) -> bytes:
    """A message as it goes over the line."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(LENGTH, "big") + data


def unpacked(line: BinaryIO) -> Iterator[Any]:
    """The messages of a line until it is closed at the other end, in the middle of one or not."""
    try:
        while len(head := line.read(LENGTH)) == LENGTH:
            size = int.from_bytes(head, "big")
            if len(data := line.read(size)) < size:
                return
            yield pickle.loads(data)
    except ConnectionError:
        return


def work(load: "Callable[[], tuple[GPT, Tokenizer]]", line: socket.socket, settings: dict[str, Any]) -> None:
    """Load a model and answer requests until the other end of the line is closed, by the parent or by its death.

    Args:
        load: gives network and tokenizer.
        line: to the parent.
        settings: of ``Engine``, but for what it answers with.
    """
    # A terminal or a service manager sends these to both processes; the parent is the one that ends orderly.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    with line, line.makefile("rb") as incoming:
        desk = _Desk(line)
        try:
            from align.serve.engine import Engine

            engine = Engine(*load(), **settings, after_round=desk.report)
        except Exception as error:
            desk.send(_to_send(error))
            return
        with engine:
            desk.send(Ready(engine.tokenizer, engine.max_length, engine.vocabulary, engine.cache_bytes))
            for number, request in unpacked(incoming):
                desk.take(engine, number, request)


def _to_send(error: Exception) -> Exception:
    """The error with its traceback as a note; as another where it cannot be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Desk:
    """Takes messages to the engine, and its pieces to the line: those of all requests in one message a round."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._tickets: dict[int, Ticket] = {}
        self._pieces: list[tuple[Any, ...]] = []
        self._taken = self._told = 0

    def take(self, engine: "Engine", number: int, request: Request | None) -> None:
        """Obey a message."""
        if request is not None:
            with self._lock:
                self._taken += 1
                try:
                    self._tickets[number] = engine.submit(request, lambda piece: self._hear(number, piece))
                    return
                except (ValueError, EngineFull, EngineFailed) as error:
                    self._pieces.append((number, *Piece("", 0, "failed", str(error))))
        elif ticket := self._tickets.pop(number, None):
            engine.cancel(ticket)
        # What has left between two rounds: perhaps no round follows.
        self.report(engine)

    def _hear(self, number: int, piece: Piece) -> None:
        with self._lock:
            self._pieces.append((number, *piece))
            if piece.reason is not None:
                self._tickets.pop(number, None)

    def report(self, engine: "Engine") -> None:
        """Send what is new. Waits for a parent that does not read, so that the engine cannot run far ahead of it."""
        with self._lock:
            over = self._taken - engine.in_hand
            if self._pieces or over != self._told or engine.failure:
                self.send(Round(over, engine.failure, self._pieces))
                self._pieces, self._told = [], over

    def send(self, message: object) -> None:
        # Where nobody is left to hear it, whoever reads from the line notices too.
        with contextlib.suppress(OSError):
            self._line.sendall(packed(message))
