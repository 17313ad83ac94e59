"""Continuous batching: requests join and leave a running batch between two steps.

One thread does all the computing. Each round:

1. Read the prompts of waiting requests into free rows, as many as a round has time for, the longest waiting first.
2. Draw a token for every row, each from its own settings and its own seed.
3. Hand out the text it completes; rows that are over, cancelled or broken leave.
4. Read the tokens of the others and go on with 1.

An answer depends on its prompt, settings and seed only, not on the company (see ``align.generation.open_decoder``), and
is the one that ``align.generation.generate.generate`` gives for this seed, up to the rounding of logits.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch

from align.generation.generate import evaluating
from align.generation.open_decoder import OpenDecoder
from align.generation.sampling import next_tokens, row_uniforms
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT
from align.serve.requests import EngineFailed, EngineFull, Piece, Reason, Request, check_prompt
from align.serve.stops import StopFinder
from align.tokenizer import Tokenizer

# Prompt tokens read in one round: rows that are being answered wait for them.
_READ_TOKENS = 512


class Ticket:
    """A request in the engine's hands."""

    def __init__(
        self, request: Request, on_piece: Callable[[Piece], None], *, room: int, tokenizer: Tokenizer, vocabulary: int
    ) -> None:
        """Start with no tokens; ``room`` is how many the answer may get, ``vocabulary`` the network's."""
        self.request, self.on_piece, self.room = request, on_piece, room
        self.settings = replace(request.sampling, max_new_tokens=1)
        self.cancelled = False
        self.tokens = 0
        self.uniforms: list[float] = row_uniforms([request.seed], room)[0].tolist()
        self.seen: torch.Tensor | None = None
        if request.sampling.repetition_penalty != 1:
            self.seen = torch.zeros(vocabulary, dtype=torch.bool)
            self.seen[list(request.prompt)] = True
        self._decoder, self._stops = tokenizer.stream_decoder(), StopFinder(request.stop)

    def take(self, token: int, stop_ids: frozenset[int]) -> Piece:
        """Note the next token of the answer."""
        self.tokens += 1
        if self.seen is not None:
            self.seen[token] = True
        text = self._stops.push(self._decoder.push(token))
        reason: Reason | None = None
        if self._stops.found or token in stop_ids:
            reason = "stop"
        elif self.tokens == self.room:
            reason = "length"
        if reason is not None:
            text += self._stops.push(self._decoder.flush()) + self._stops.flush()
            reason = "stop" if self._stops.found else reason
        return Piece(text, self.tokens, reason)


class Engine:
    """Answers requests in one batch that they join and leave at any time.

    Attributes:
        max_rows: requests answered at once.
        max_length: longest prompt and answer together, tokens.
        vocabulary: how many ids the network knows.
    """

    def __init__(
        self, network: GPT, tokenizer: Tokenizer, *, max_rows: int, max_length: int | None = None,
        max_waiting: int = 64, after_round: Callable[["Engine"], None] = lambda engine: None,
    ) -> None:  # fmt: skip
        """Make room for ``max_rows`` rows and start the thread.

        Args:
            network: its weights are copied once, and must not change.
            tokenizer: the network's own.
            max_rows: requests answered at once.
            max_length: longest prompt and answer together, tokens; None means the network's context.
            max_waiting: requests that may wait for a row.
            after_round: called on the engine's thread when the pieces of a round are handed out, and once it has
                failed; gets the engine.

        Raises:
            ValueError: a number is impossible, or the tokenizer has ids that the network lacks.
        """
        context, vocabulary = network.config.context, network.config.vocab_size
        length = context if max_length is None else max_length
        if tokenizer.vocab_size > vocabulary:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, the network {vocabulary}: not a pair")
        for name, value, least, most in (
            ("max_concurrency", max_rows, 1, 1 << 16),
            ("max_length", length, 2, context),
            ("max_waiting", max_waiting, 0, 1 << 20),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}; it must be between {least} and {most}")
        self.max_rows, self.max_length, self.max_waiting = max_rows, length, max_waiting
        self.tokenizer, self.vocabulary, self._after_round = tokenizer, vocabulary, after_round
        self._stop_ids = frozenset(tokenizer.stop_ids)
        with torch.inference_mode(), evaluating(network):
            self._decoder = OpenDecoder(network, max_rows=max_rows, slots=length)
        self._device = self._decoder.positions.device
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._work, name="align-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_piece: Callable[[Piece], None]) -> Ticket:
        """Ask for an answer.

        Args:
            request: its prompt must leave room for an answer.
            on_piece: called on the engine's thread with each piece of the answer, the last of which has a reason; must
                be quick. One that raises cancels its request.

        Returns:
            Ticket: to cancel it with.

        Raises:
            ValueError: the prompt is empty, too long, or holds an id the network does not know.
            EngineFull: as many wait as may.
            EngineFailed: the engine is closed or broken.
        """
        check_prompt(request.prompt, max_length=self.max_length, vocabulary=self.vocabulary)
        room = min(request.sampling.max_new_tokens, self.max_length - len(request.prompt))
        ticket = Ticket(request, on_piece, room=room, tokenizer=self.tokenizer, vocabulary=self.vocabulary)
        with self._changed:
            if self._failure is not None:
                raise EngineFailed(self._failure)
            if len(self._waiting) >= self.max_waiting + self.max_rows - len(self._running):
                raise EngineFull(f"{len(self._running)} requests are being answered and {len(self._waiting)} wait")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Give a request up: it gets no more pieces, and its row is free by the next step. Harmless when it is over."""
        with self._changed:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    @property
    def running(self) -> int:
        """Requests being answered."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    @property
    def in_hand(self) -> int:
        """Requests that are being answered or wait, none missed that changes from one to the other just now."""
        with self._changed:
            return len(self._waiting) + len(self._running)

    @property
    def failure(self) -> str | None:
        """Why the engine takes no requests, or None if it does."""
        return self._failure

    @property
    def cache_bytes(self) -> int:
        """Memory of keys and values, bytes."""
        return self._decoder.cache.num_bytes

    def close(self) -> None:
        """Fail what is not over, and end the thread."""
        with self._changed:
            self._failure = self._failure or "the engine is closed"
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> "Engine":
        """The engine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                self._rounds()
        except Exception as error:
            with self._changed:
                self._failure = f"{type(error).__name__}: {error}"
        for ticket in [*self._running, *self._waiting]:
            self._tell(ticket, Piece("", ticket.tokens, "failed", self._failure or ""))
        self._after_round(self)

    def _rounds(self) -> None:
        """See the module's text for the numbers."""
        stepped: list[torch.Tensor] = []
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._failure or self._waiting or self._running)
                if self._failure:
                    return
            logits = [*stepped, *self._read_waiting()]  # 1
            tokens = self._draw(torch.cat(logits)) if logits else []  # 2
            left = self._hand_out(tokens)  # 3
            self._after_round(self)
            stepped = [self._decoder.step(torch.tensor(left, device=self._device))] if left else []  # 4

    def _read_waiting(self) -> list[torch.Tensor]:
        come: list[Ticket] = []
        with self._changed:
            room = self.max_rows - len(self._running)
            read = 0
            while self._waiting and len(come) < room and (read < _READ_TOKENS or not (come or self._running)):
                come.append(self._waiting.popleft())
                read += len(come[-1].request.prompt)
            come.sort(key=lambda ticket: -len(ticket.request.prompt))  # those of like length are read together
            self._running += come
        return [self._decoder.join([ticket.request.prompt for ticket in come])] if come else []

    def _draw(self, logits: torch.Tensor) -> list[int]:
        """A token for every row; -1 where the logits are not finite."""
        groups: dict[SamplingConfig, list[int]] = {}
        for row, ticket in enumerate(self._running):
            groups.setdefault(ticket.settings, []).append(row)
        drawn = [-1] * len(self._running)
        for settings, rows in groups.items():
            tickets = [self._running[row] for row in rows]
            seen = [ticket.seen for ticket in tickets if ticket.seen is not None]
            tokens, logprobs = next_tokens(
                logits if len(groups) == 1 else logits[rows],
                settings,
                uniforms=torch.tensor([ticket.uniforms[ticket.tokens] for ticket in tickets], device=self._device),
                seen=torch.stack(seen).to(self._device) if seen else None,
            )
            good = logprobs.isfinite().tolist()
            for row, token, finite in zip(rows, tokens.tolist(), good, strict=True):
                drawn[row] = token if finite else -1
        return drawn

    def _hand_out(self, tokens: list[int]) -> list[int]:
        """Tell every request its token; returns the tokens of those that go on, in the decoder's order of rows."""
        for row in reversed(range(len(tokens))):
            ticket = self._running[row]
            if not ticket.cancelled and self._goes_on(ticket, tokens[row]):
                continue
            # As in OpenDecoder.leave: the last row takes the place.
            self._decoder.leave(row)
            last_ticket, last_token = self._running.pop(), tokens.pop()
            if row < len(tokens):
                self._running[row], tokens[row] = last_ticket, last_token
        return tokens

    def _goes_on(self, ticket: Ticket, token: int) -> bool:
        if token < 0:
            error = "the network's logits are not finite: look for NaN or infinity in its weights"
            self._tell(ticket, Piece("", ticket.tokens, "failed", error))
            return False
        piece = ticket.take(token, self._stop_ids)
        if (piece.text or piece.reason) and not self._tell(ticket, piece):
            return False
        return piece.reason is None

    def _tell(self, ticket: Ticket, piece: Piece) -> bool:
        """Hand a piece over; False when nobody takes it."""
        try:
            ticket.on_piece(piece)
        except Exception:
            ticket.cancelled = True
        return not ticket.cancelled
