"""Twenty questions about an animal of the sandbox: a model asks, then guesses."""

from dataclasses import dataclass
from typing import Any

from align.environments.environment import Environment, Step
from align.sandbox.games.questions import HINT, Thing, answer_to, guessed_in
from align.tokenizer.prompts import Columns, Prompt


@dataclass(frozen=True)
class TwentyQuestions(Environment):
    """Answers ``Is it red or blue?`` with yes or no, until a guess such as ``It is the red fox by the pond.``.

    The reward is 1 for the right guess, and 0 otherwise; a wrong guess ends the episode too. A turn that is neither
    question nor guess is told so. See ``align sandbox questions``.

    Raises:
        ValueError: max_turns is below 1.
    """

    max_turns: int = 7
    """Turns of the model after which an episode ends without reward; six good questions and a guess suffice"""
    column: str = "secret"
    """Of the records: the animal, such as ``red fox by the pond``"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if self.max_turns < 1:
            raise ValueError(f"environment.max_turns is {self.max_turns}: it must be at least 1")

    @property
    def columns(self) -> tuple[str, ...]:
        """The secret."""
        return (self.column,)

    def reset(self, prompt: Prompt, record: Columns) -> Thing:
        """The secret.

        Raises:
            ValueError: the record has none.
        """
        try:
            return Thing.parsed(str(record.get(self.column)))
        except ValueError as error:
            raise ValueError(f"TwentyQuestions needs an animal in {self.column!r}: {error}") from error

    def step(self, state: Any, response: str) -> Step:
        """See ``Environment``."""
        guess = guessed_in(response)
        if guess is not None:
            return Step(reward=float(guess == tuple(state)), done=True)
        told = answer_to(response, state)
        return Step(observation=HINT if told is None else "yes" if told else "no", state=state)
