"""The protocol of a multi-turn task: a prompt, then turns of the model and of its environment, one after the other."""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

from align.tokenizer.prompts import Columns, Prompt


class Step(NamedTuple):
    """What an environment answers to a turn of the model.

    Attributes:
        reward: for this turn, at its last token.
        done: the episode ends here.
        observation: the next message to the model; not read once the episode is done.
        role: of that message.
        state: of the episode from here on; handed to the next ``step``.
    """

    reward: float = 0.0
    done: bool = False
    observation: str = ""
    role: Literal["user", "tool"] = "user"
    state: Any = None


class Environment(ABC):
    """Base of the multi-turn tasks.

    Subclass it as a frozen dataclass whose fields are settings. One object serves all episodes: what an episode
    remembers is its state, which ``reset`` makes and ``step`` hands on. Both are deterministic in their arguments, or a
    resumed run differs from an uninterrupted one.

    Attributes:
        max_turns: turns of the model after which an episode ends in any case; a subclass may make it a setting.
    """

    max_turns: int = 4

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the records that ``reset`` reads."""
        return ()

    @abstractmethod
    def reset(self, prompt: Prompt, record: Columns) -> Any:
        """The state at the beginning of an episode; the prompt is what the model sees first.

        Args:
            prompt: as it is in the data, a text or a list of messages.
            record: the columns of the prompt's record that ``columns`` names.

        Raises:
            ValueError: the record is not what the environment needs.
        """

    @abstractmethod
    def step(self, state: Any, response: str) -> Step:
        """Answer a turn of the model.

        Args:
            state: of the episode; not changed.
            response: text of the turn, without special tokens.
        """
