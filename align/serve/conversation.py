"""A chat with one model: its history, what of it still fits, and the answer that is coming."""

import threading
from collections.abc import Callable
from dataclasses import replace

from align.generation.sampling_config import SamplingConfig
from align.serve.engine import Engine
from align.serve.requests import Piece, Reason, Request


class Reply:
    """An answer that is coming. Once over, it is part of its conversation.

    Attributes:
        text: what has come so far.
        reason: why it is over, ``cancelled`` included; None while it goes on.
        error: what failed.
        dropped: turns that were left out of the history to make room.
    """

    def __init__(self, dropped: int) -> None:
        """Start with no text."""
        self.text, self.error, self.dropped = "", "", dropped
        self.reason: Reason | str | None = None
        self._changed = threading.Event()
        self.cancel: Callable[[], None] = lambda: None

    def wait(self, seconds: float) -> None:
        """Until something has come since the last wait, at most ``seconds``."""
        self._changed.wait(seconds)
        self._changed.clear()

    def add(self, piece: Piece) -> None:
        """Take the next piece; on the engine's thread."""
        self.text += piece.text
        self.error = piece.error
        self.reason = piece.reason
        self._changed.set()


class Conversation:
    """A chat of several turns.

    Attributes:
        name: the model's.
        system: the system message; empty: none.
        seed: of the first answer; the next ones count up from it.
        messages: user and assistant, in turn.
    """

    def __init__(self, name: str, engine: Engine, sampling: SamplingConfig, *, seed: int, system: str = "") -> None:
        """Start with no turns."""
        self.name, self.system, self.seed = name, system, seed
        self.messages: list[dict[str, str]] = []
        self._engine, self._sampling, self._turn = engine, sampling, 0

    def reset(self) -> None:
        """Forget every turn; the system message and the seed stay, so the same words get the same answers."""
        self.messages.clear()
        self._turn = 0

    def transcript(self) -> list[dict[str, str]]:
        """The messages, the system's first if there is one."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def say(self, text: str) -> Reply:
        """Answer what a user says; ``finish`` it when it is over.

        The oldest turns are forgotten as long as the chat leaves too little room for an answer: a quarter of the
        model's length, or ``max_new_tokens`` if that is less.

        Args:
            text: the user's message.

        Returns:
            Reply: under way.

        Raises:
            ValueError: the message does not fit even by itself.
        """
        length = self._engine.max_length
        reserve = min(self._sampling.max_new_tokens, length // 4)
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        dropped = 0
        while len(ids := self._render()) > length - reserve and len(self.messages) > 1:
            del self.messages[:2]
            dropped += 1
        if len(ids) > length - reserve:
            self.messages = before
            raise ValueError(
                f"{self.name}: the message (with the system message) has {len(ids)} tokens; the model's length of "
                f"{length} has room for {length - reserve} and an answer"
            )
        reply = Reply(dropped)
        sampling = replace(self._sampling, max_new_tokens=min(self._sampling.max_new_tokens, length - len(ids)))
        ticket = self._engine.submit(Request(ids, sampling, self.seed + self._turn), reply.add)
        reply.cancel = lambda: self._engine.cancel(ticket)
        self._turn += 1
        return reply

    def finish(self, reply: Reply) -> None:
        """Keep an answer that is over, or end it where it is; one of which nothing came goes with its question."""
        if reply.reason is None:
            reply.cancel()
            reply.reason = "cancelled"
        if reply.text:
            self.messages.append({"role": "assistant", "content": reply.text})
        else:
            self.messages.pop()

    def _render(self) -> list[int]:
        return self._engine.tokenizer.render_chat(self.transcript(), add_generation_prompt=True).ids
