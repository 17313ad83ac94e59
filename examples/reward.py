"""Rewards for short, polite responses: a function, one that reads a column of the data, and a class with settings.

align compare sft=runs/tiny/sft dpo=runs/tiny/dpo --judge reward:score --out report
"""

from collections.abc import Sequence
from dataclasses import dataclass

from align.rewards import Prompt, Reward


def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """1 for a response that thanks, 0 otherwise."""
    return [float("thank" in response.lower()) for response in responses]


def within(prompts: Sequence[str], responses: Sequence[str], most_words: Sequence[int]) -> list[float]:
    """1 for a response of at most as many words as ``most_words`` of its record says, 0 otherwise."""
    return [float(len(response.split()) <= most) for response, most in zip(responses, most_words, strict=True)]


@dataclass(frozen=True)
class Polite(Reward):
    """Polite words, minus a cost per character; a recipe sets the fields as init_args."""

    words: tuple[str, ...] = ("please", "thank")
    """Each counts once, in lower case"""
    cost: float = 0.01
    """Of a character"""

    def __post_init__(self) -> None:
        """Refuse an impossible cost."""
        if self.cost < 0:
            raise ValueError(f"Polite.cost is {self.cost}: it must be at least 0")

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score each response."""
        return [
            sum(word in response.lower() for word in self.words) - self.cost * len(response) for response in responses
        ]
