"""A reward that is the weighted sum of others."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from align.rewards.functions import columns_read, load_reward
from align.rewards.reward import Part, Reward
from align.tokenizer.prompts import Columns, Prompt


@dataclass(frozen=True)
class WeightedSum(Reward):
    """The sum of the scores of several rewards, each times its weight. What trains or evaluates logs every part too.

    Raises:
        ValueError: there is no part, or a name is no word.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    """Name -> reward and weight, such as {answer: {reward: exact_answer}}"""

    def __post_init__(self) -> None:
        """Reject sums of nothing, and names that can't stand in metrics."""
        if not self.parts:
            raise ValueError("WeightedSum.parts is empty; give at least one reward")
        for name in self.parts:
            if not re.fullmatch(r"\w+", name):
                raise ValueError(f"WeightedSum.parts has the name {name!r}; use letters, digits and underscores")

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of all parts."""
        return columns_read(part.reward for part in self.parts.values())

    @property
    def summed(self) -> Mapping[str, Part]:
        """See ``Reward``."""
        return self.parts

    def loaded(self, load: Callable[[str | Reward], Reward]) -> "WeightedSum":
        """See ``Reward``."""
        return replace(self, parts={name: replace(part, reward=load(part.reward)) for name, part in self.parts.items()})

    @property
    def rewards(self) -> Mapping[str, Reward]:
        """Name -> reward of each part.

        Raises:
            ValueError: there is no such reward.
        """
        return {name: load_reward(part.reward) for name, part in self.parts.items()}

    def part_scores(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Sequence[Columns] = ()
    ) -> dict[str, list[float]]:
        """Scores of each part, without its weight; arguments and errors as when a reward is called."""
        return {name: reward(prompts, responses, columns) for name, reward in self.rewards.items()}

    def total(self, scores: Mapping[str, Any]) -> Any:
        """The weighted sum.

        Args:
            scores: name of each part -> its scores, an array or a tensor.
        """
        return sum(part.weight * scores[name] for name, part in self.parts.items())

    def sums(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        """``total`` of lists."""
        return [self.total(dict(zip(scores, row, strict=True))) for row in zip(*scores.values(), strict=True)]

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Sequence[Columns] = ()
    ) -> list[float]:
        """See ``Reward``."""
        return self.sums(self.part_scores(prompts, responses, columns))

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], *columns: Any, **named: Any) -> list[float]:
        """See ``Reward``; columns come in the order of ``columns``, or by name."""
        values = {**dict(zip(self.columns, columns, strict=False)), **named}
        return self(
            prompts, responses, [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        )


def scores_of(
    reward: Reward, prompts: Sequence[Prompt], responses: Sequence[str], columns: Sequence[Columns] = ()
) -> tuple[list[float], dict[str, list[float]]]:
    """Scores of a reward, and those of its parts if it is a weighted sum; arguments and errors as when it is called."""
    if not isinstance(reward, WeightedSum):
        return reward(prompts, responses, columns), {}
    parts = reward.part_scores(prompts, responses, columns)
    return reward.sums(parts), parts
