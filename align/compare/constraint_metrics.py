"""Comparison metrics of instructions with verifiable constraints: strict accuracy over all kinds, and by kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.compare.metrics import Metric
from align.compare.respond import Response
from align.rewards.constraints import KIND_NAMES, Verdict, checked
from align.tokenizer.prompts import Prompt


@dataclass(frozen=True)
class StrictConstraintAccuracy(Metric):
    """Share of responses that satisfy every constraint of their prompt."""

    label = "strict constraint accuracy"
    meaning = "Share of responses that satisfy every constraint of their prompt."
    is_share = True

    def measure(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Any:
        """See ``Metric``."""
        return [[float(all(verdict.met for verdict in found)) for found in row] for row in _table(prompts, responses)]


@dataclass(frozen=True)
class KindAccuracy(Metric):
    """Share of responses that satisfy a kind of constraint, over the prompts that state one."""

    meaning = "Share of responses that satisfy this kind of constraint, over the prompts that state it."
    is_share = True
    is_column = False

    kind: str
    """Name of the kind"""

    @property
    def name(self) -> str:
        """With the kind."""
        return f"KindAccuracy.{self.kind}"

    @property
    def label(self) -> str:  # type: ignore[override]
        """The kind."""
        return self.kind

    def measure(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Any:
        """See ``Metric``; None where no prompt states the kind."""
        rows = [
            [float(verdict.met) for found in row for verdict in found if verdict.kind == self.kind]
            for row in _table(prompts, responses)
        ]
        return [row for row in rows if row] or None


BY_KIND: tuple[Metric, ...] = tuple(KindAccuracy(kind) for kind in KIND_NAMES)
"""One metric per kind of constraint"""


def _table(prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> list[list[tuple[Verdict, ...]]]:
    """``P`` rows of ``N``: the verdicts on each response."""
    return [
        checked([prompt] * len(row), [response.text for response in row])
        for prompt, row in zip(prompts, responses, strict=True)
    ]
