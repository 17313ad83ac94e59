"""A response that is sampled in a thread of its own, so that somebody can watch it grow or stop it."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from align.generation.responses import sample_responses
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT
from align.tokenizer import Tokenizer
from align.tokenizer.chat_template import Message


class _Cancelled(Exception):
    """Raised between two tokens of a response that nobody waits for."""


class Reply:
    """A response that is being sampled.

    Attributes:
        text: so far.
        reason: why it is over: ``stop``, ``length``, ``cancelled`` or ``failed``; None while it is sampled.
        error: what failed.
        sampling: how it is sampled.
        seed: of this response.
    """

    def __init__(
        self, network: GPT, tokenizer: Tokenizer, ids: Sequence[int], sampling: SamplingConfig, *, seed: int
    ) -> None:
        """Start sampling.

        Args:
            network: of the chat.
            tokenizer: its own.
            ids: the prompt.
            sampling: with room for ``max_new_tokens``.
            seed: of this response.
        """
        self.text, self.error = "", ""
        self.sampling, self.seed = sampling, seed
        self.reason: str | None = None
        self._changed, self._cancelled = threading.Event(), threading.Event()
        self._decoder = tokenizer.stream_decoder()
        self._thread = threading.Thread(target=self._sample, args=(network, tokenizer, ids), daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until there is more text, or the response is over; at most ``seconds``."""
        self._changed.wait(seconds)
        self._changed.clear()

    def cancel(self) -> None:
        """End it after the token that is being sampled."""
        self._cancelled.set()
        self._thread.join()

    def _sample(self, network: GPT, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
        try:
            sampled = sample_responses(
                network, tokenizer, [ids], self.sampling, seeds=[self.seed], on_token=self._add, on_step=self._check
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


@dataclass(frozen=True)
class ChatModel:
    """A model that responds to chats."""

    name: str
    """Its name among the models of a command"""
    network: GPT
    """In evaluation mode"""
    tokenizer: Tokenizer
    """The network's own, with a chat template"""
    sampling: SamplingConfig
    """How its responses are sampled"""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a chat up to the response.

        Raises:
            ValueError: the messages cannot be rendered or encoded.
        """
        return self.tokenizer.render_chat(messages, add_generation_prompt=True).ids

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt that leaves a response a quarter of the context, or ``max_new_tokens`` if less."""
        context = self.network.config.context
        return context - min(self.sampling.max_new_tokens, context // 4)

    def require_room(self, ids: Sequence[int]) -> None:
        """Refuse a prompt that leaves too little room for a response.

        Raises:
            ValueError: it does; the message does not name the model.
        """
        if len(ids) > self.longest_prompt:
            raise ValueError(
                f"the message (with the system message) has {len(ids)} tokens; the model's context of "
                f"{self.network.config.context} has room for {self.longest_prompt} and a response"
            )

    def respond(self, ids: Sequence[int], *, seed: int) -> Reply:
        """Start a response to a prompt.

        Args:
            ids: from ``encode``.
            seed: of this response, from ``align.generation.sampling.response_seed``.

        Raises:
            ValueError: as for ``require_room``.
        """
        self.require_room(ids)
        room = self.network.config.context - len(ids)
        sampling = replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, room))
        return Reply(self.network, self.tokenizer, ids, sampling, seed=seed)
