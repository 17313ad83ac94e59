"""The reward of responses of a given length."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from align.rewards.reward import Reward
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import Prompt


@dataclass(frozen=True)
class Length(Reward):
    """1 for a response from ``least`` to ``most`` long; outside it falls linearly and is 0 from ``margin`` away.

    A target is ``least`` equal to ``most``. With ``most`` the soft limit and ``margin`` the rest up to the hard one,
    this is 1 plus the soft overlong punishment of DAPO (Yu et al. 2025, equation 13).

    Raises:
        ValueError: a setting is invalid.
    """

    least: int = 0
    """Shortest length that scores 1"""
    most: int | None = None
    """Longest length that scores 1; null: no limit"""
    margin: int = 0
    """Distance from this range at which the score reaches 0; 0: everything outside scores 0"""
    tokenizer: str | None = None
    """Model directory in whose tokens the text of a response is counted; null: words, between white space"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if self.least < 0 or self.margin < 0:
            raise ValueError(f"Length.least is {self.least} and margin {self.margin}; both must be at least 0")
        if self.most is not None and self.most < self.least:
            raise ValueError(f"Length.most is {self.most}, below least, {self.least}; it must be at least that")
        if self.least == 0 and self.most is None:
            raise ValueError("Length.least is 0 and most null, so every response scores 1; set one of them")

    @cached_property
    def _tokens(self) -> Tokenizer | None:
        return None if self.tokenizer is None else Tokenizer.load(self.tokenizer)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """See ``Reward``."""
        tokens = self._tokens
        return [
            self._value(len(response.split() if tokens is None else tokens.encode(response))) for response in responses
        ]

    def _value(self, length: int) -> float:
        gap = max(self.least - length, 0 if self.most is None else length - self.most, 0)
        return max(0.0, 1.0 - gap / self.margin) if self.margin else float(gap == 0)
