"""The gold reward of instructions with verifiable constraints, by the checks of ``align.sandbox.constraints``."""

from collections.abc import Sequence
from dataclasses import dataclass

from align.rewards.reward import Reward
from align.sandbox.constraints import KINDS, Verdict, verdicts
from align.tokenizer.prompts import Prompt, as_text

__all__ = ["KIND_NAMES", "ConstraintReward", "Verdict", "checked"]

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
        return [self._value(found) for found in checked(prompts, responses)]

    def _value(self, found: Sequence[Verdict]) -> float:
        met = sum(verdict.met for verdict in found) / len(found)
        return float(met == 1) if self.strict else met


def checked(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[tuple[Verdict, ...]]:
    """The verdicts on each response: one per constraint of its prompt.

    Raises:
        ValueError: a prompt states no constraint.
    """
    return [verdicts(as_text(prompt), response) for prompt, response in zip(prompts, responses, strict=True)]
