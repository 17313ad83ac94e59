"""Rewards of instructions with verifiable constraints, by the checks of ``align.sandbox.constraints``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.rewards.reward import Reward, shown
from align.sandbox.constraints import KINDS, Constraint, Verdict, from_record, verdicts
from align.tokenizer.prompts import Prompt, as_text

__all__ = ["KIND_NAMES", "ConstraintReward", "ConstraintsColumn", "Verdict", "checked"]

KIND_NAMES = tuple(KINDS)
"""Every kind of constraint"""


@dataclass(frozen=True)
class ConstraintReward(Reward):
    """Constraints of the prompt that a response satisfies, as strict checks of its text decide.

    The constraints are those that the prompt's own text states, so that the reward works wherever prompts and responses
    do; a prompt without any is an error.
    """

    strict: bool = False
    """1 if all constraints are satisfied and 0 otherwise, instead of the share of them in [0, 1]"""

    name = "constraints"

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """See ``Reward``."""
        return [_value([verdict.met for verdict in found], self.strict) for found in checked(prompts, responses)]


@dataclass(frozen=True)
class ConstraintsColumn(Reward):
    """Constraints in the record of a prompt that a response satisfies, as strict checks of its text decide."""

    column: str = "constraints"
    """Column of the constraints, a list of objects with ``kind`` and the kind's settings"""
    strict: bool = False
    """1 if all constraints are satisfied and 0 otherwise, instead of the share of them in [0, 1]"""

    @property
    def columns(self) -> tuple[str, ...]:
        """The column of the constraints."""
        return (self.column,)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], constraints: Sequence[Any]) -> list[float]:
        """See ``Reward``.

        Raises:
            ValueError: a record has no constraint, or one of an unknown kind or with other settings.
        """
        return [
            _value([constraint.check(response) for constraint in self._read(asked)], self.strict)
            for response, asked in zip(responses, constraints, strict=True)
        ]

    def _read(self, asked: Any) -> list[Constraint]:
        if not isinstance(asked, list) or not asked or not all(isinstance(one, dict) for one in asked):
            raise ValueError(
                f"column {self.column!r} must be a list of objects such as {{'kind': 'bullets', 'count': 3}}, found "
                f"{shown(asked)}"
            )
        return [from_record(one) for one in asked]


def _value(met: Sequence[bool], strict: bool) -> float:
    return float(all(met)) if strict else sum(met) / len(met)


def checked(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[tuple[Verdict, ...]]:
    """The verdicts on each response: one per constraint of its prompt.

    Raises:
        ValueError: a prompt states no constraint.
    """
    return [verdicts(as_text(prompt), response) for prompt, response in zip(prompts, responses, strict=True)]
