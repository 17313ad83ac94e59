"""A chat with one model: its history, and how much of it fits."""

from typing import NamedTuple

from align.generation.reply import ChatModel, Reply
from align.generation.sampling import response_seed


class Turn(NamedTuple):
    """A response under way.

    Attributes:
        reply: the response.
        dropped: turns that were left out of the history to make room.
    """

    reply: Reply
    dropped: int


class Conversation:
    """A chat of several turns.

    Attributes:
        model: what responds.
        system: the system message; empty: none.
        seed: of the chat; see ``align.generation.sampling.response_seed``.
        messages: user and assistant, in turn.
    """

    def __init__(self, model: ChatModel, *, seed: int, system: str = "") -> None:
        """Start with no turns."""
        self.model, self.system, self.seed = model, system, seed
        self.messages: list[dict[str, str]] = []
        self._turn = 0

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    def reset(self) -> None:
        """Forget every turn; the system message and the seed stay, so the same words get the same responses."""
        self.messages.clear()
        self._turn = 0

    def transcript(self) -> list[dict[str, str]]:
        """The messages, the system's first if there is one."""
        return self._with_system(self.messages)

    def say(self, text: str) -> Turn:
        """Respond to what a user says; ``finish`` the reply when it is over.

        The oldest turns are dropped as long as the chat leaves too little room for a response: see
        ``ChatModel.longest_prompt``.

        Args:
            text: the user's message.

        Returns:
            Turn: under way.

        Raises:
            ValueError: the message does not fit even by itself, or cannot be encoded; the history is as before.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        dropped = 0
        while len(ids := self._render(messages)) > self.model.longest_prompt and len(messages) > 1:
            del messages[:2]
            dropped += 1
        try:
            reply = self.model.respond(ids, seed=response_seed(self.seed, self._turn, 0))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        self.messages = messages
        self._turn += 1
        return Turn(reply, dropped)

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
        return self.model.encode(self._with_system(messages))
