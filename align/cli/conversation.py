"""A chat with one model: its history, how much of it fits, and the response that is being sampled."""

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from align.generation.responses import sample_responses
from align.generation.sampling import response_seed

if TYPE_CHECKING:
    from align.generation.sampling_config import SamplingConfig
    from align.model.gpt import GPT
    from align.tokenizer import Tokenizer


class _Cancelled(Exception):
    """Raised between two tokens of a response that nobody waits for."""


class Reply:
    """A response that is being sampled, in a thread of its own.

    Attributes:
        text: so far.
        reason: why it is over: ``stop``, ``length``, ``cancelled`` or ``failed``; None while it is sampled.
        error: what failed.
        dropped: turns that were left out of the history to make room.
    """

    def __init__(
        self, network: "GPT", tokenizer: "Tokenizer", ids: list[int], sampling: "SamplingConfig", *, seed: int,
        dropped: int,
    ) -> None:  # fmt: skip
        """Start sampling.

        Args:
            network: of the chat.
            tokenizer: its own.
            ids: the prompt.
            sampling: with room for ``max_new_tokens``.
            seed: of this response.
            dropped: see the attributes.
        """
        self.text, self.error, self.dropped = "", "", dropped
        self.reason: str | None = None
        self._changed, self._cancelled = threading.Event(), threading.Event()
        self._decoder = tokenizer.stream_decoder()
        self._thread = threading.Thread(
            target=self._sample, args=(network, tokenizer, ids, sampling, seed), daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until there is more text, or the response is over; at most ``seconds``."""
        self._changed.wait(seconds)
        self._changed.clear()

    def cancel(self) -> None:
        """End it after the token that is being sampled."""
        self._cancelled.set()
        self._thread.join()

    def _sample(
        self, network: "GPT", tokenizer: "Tokenizer", ids: list[int], sampling: "SamplingConfig", seed: int
    ) -> None:
        try:
            sampled = sample_responses(
                network, tokenizer, [ids], sampling, seeds=[seed], on_token=self._add, on_step=self._check
            )
            reason = "stop" if sampled.finished[0] else "length"
        except _Cancelled:
            reason = "cancelled"
        except Exception as error:  # the thread has no one else to tell
            reason, self.error = "failed", str(error)
        self.text += self._decoder.flush()
        self.reason = reason
        self._changed.set()

    def _add(self, row: int, token: int) -> None:
        self.text += self._decoder.push(token)
        self._changed.set()

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise _Cancelled


class Conversation:
    """A chat of several turns.

    Attributes:
        name: the model's.
        system: the system message; empty: none.
        seed: of the chat; see ``align.generation.sampling.response_seed``.
        messages: user and assistant, in turn.
    """

    def __init__(
        self, name: str, network: "GPT", tokenizer: "Tokenizer", sampling: "SamplingConfig", *, seed: int,
        system: str = "",
    ) -> None:  # fmt: skip
        """Start with no turns."""
        self.name, self.system, self.seed = name, system, seed
        self.messages: list[dict[str, str]] = []
        self._network, self._tokenizer, self._sampling, self._turn = network, tokenizer, sampling, 0

    def reset(self) -> None:
        """Forget every turn; the system message and the seed stay, so the same words get the same responses."""
        self.messages.clear()
        self._turn = 0

    def transcript(self) -> list[dict[str, str]]:
        """The messages, the system's first if there is one."""
        return self._with_system(self.messages)

    def say(self, text: str) -> Reply:
        """Respond to what a user says; ``finish`` the reply when it is over.

        The oldest turns are dropped as long as the chat leaves too little room for a response: a quarter of the
        model's context, or ``max_new_tokens`` if that is less.

        Args:
            text: the user's message.

        Returns:
            Reply: under way.

        Raises:
            ValueError: the message does not fit even by itself, or cannot be encoded; the history is as before.
        """
        context = self._network.config.context
        limit = context - min(self._sampling.max_new_tokens, context // 4)
        messages = [*self.messages, {"role": "user", "content": text}]
        dropped = 0
        while len(ids := self._render(messages)) > limit and len(messages) > 1:
            del messages[:2]
            dropped += 1
        if len(ids) > limit:
            raise ValueError(
                f"{self.name}: the message (with the system message) has {len(ids)} tokens; the model's context of "
                f"{context} has room for {limit} and a response"
            )
        sampling = replace(self._sampling, max_new_tokens=min(self._sampling.max_new_tokens, context - len(ids)))
        seed = response_seed(self.seed, self._turn, 0)
        self.messages = messages
        self._turn += 1
        return Reply(self._network, self._tokenizer, ids, sampling, seed=seed, dropped=dropped)

    def finish(self, reply: Reply) -> None:
        """Keep a response that is over, or end it where it is; an empty one goes with its question."""
        reply.cancel()
        if reply.text:
            self.messages.append({"role": "assistant", "content": reply.text})
        else:
            self.messages.pop()

    def _with_system(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *messages]

    def _render(self, messages: list[dict[str, str]]) -> list[int]:
        return self._tokenizer.render_chat(self._with_system(messages), add_generation_prompt=True).ids
