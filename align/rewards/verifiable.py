"""Rewards that check a response against its record: the right number, a regular expression."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from align.rewards.reward import Reward, shown
from align.tokenizer.prompts import Prompt

_MARK = "####"
"""Stands before the final answer in GSM8K (Cobbe et al. 2021)"""

# After a digit, a letter or a bracket a minus is an operator or a dash.
_SIGN = r"(?:(?<![0-9A-Za-z)\]])[-\u2212]\$?)?"
_NUMBER = re.compile(rf"{_SIGN}(?:(?:[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)")


@dataclass(frozen=True)
class ExactAnswer(Reward):
    """1 if the last number of a response is the answer of its record, else 0.

    Numbers are compared by value and exactly: ``-$1,234.50`` is ``-1234.5``. What stands beside a number (a currency, a
    unit, a percent sign) is not compared. Fractions and powers of ten are not read: ``1/2`` ends in the number 2.
    """

    column: str = "answer"
    """Column of the answer: a number, or a text with one number, in GSM8K's format (``... #### 72``) after the mark"""

    name = "exact_answer"

    @property
    def columns(self) -> tuple[str, ...]:
        """The column of the answer."""
        return (self.column,)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], answers: Sequence[Any]) -> list[float]:
        """See ``Reward``.

        Raises:
            ValueError: an answer has no number, or several.
        """
        expected = [self._number(answer) for answer in answers]
        return [float(last_number(text) == number) for text, number in zip(responses, expected, strict=True)]

    def _number(self, answer: Any) -> Decimal:
        if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
            return Decimal(str(answer))
        found = _numbers(answer.rpartition(_MARK)[2]) if isinstance(answer, str) else []
        if len(found) != 1:
            raise ValueError(
                f"column {self.column!r} must be a number or a text that ends in '#### NUMBER', found {shown(answer)}"
            )
        return found[0]


@dataclass(frozen=True)
class Matches(Reward):
    """1 if a regular expression is found in a response, else 0.

    Raises:
        ValueError: the pattern is not a regular expression of Python.
    """

    pattern: str
    """Searched for in every response, as by ``re.search``"""

    def __post_init__(self) -> None:
        """Reject what is no regular expression."""
        _compiled(self.pattern, "Matches.pattern")

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """See ``Reward``."""
        return [float(re.search(self.pattern, response) is not None) for response in responses]


@dataclass(frozen=True)
class MatchesColumn(Reward):
    """1 if the regular expression in a response's record is found in the response, else 0."""

    column: str = "pattern"
    """Column of the regular expression, which is searched for as by ``re.search``"""

    @property
    def columns(self) -> tuple[str, ...]:
        """The column of the regular expression."""
        return (self.column,)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], patterns: Sequence[Any]) -> list[float]:
        """See ``Reward``.

        Raises:
            ValueError: a pattern is not a regular expression of Python.
        """
        return [
            float(_compiled(pattern, f"column {self.column!r}").search(response) is not None)
            for response, pattern in zip(responses, patterns, strict=True)
        ]


def last_number(text: str) -> Decimal | None:
    """The last decimal number in a text; None if there is none."""
    found = _numbers(text)
    return found[-1] if found else None


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(re.sub(r"[$,]", "", word).replace("\u2212", "-")) for word in _NUMBER.findall(text)]


def _compiled(pattern: Any, where: str) -> "re.Pattern[str]":
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{where} is {shown(pattern)}, not a regular expression: {error}") from None
