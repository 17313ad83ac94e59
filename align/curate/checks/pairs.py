"""Checks of preference pairs and of labelled responses."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.curate.check import Check, Example, Finding, affected, percent
from align.curate.context import Context, Dropped, Sample, plain

_Z = 1.96
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
)


@dataclass(frozen=True)
class EqualResponses(Check):
    """Pairs whose responses are the same, or differ only in case and spaces."""

    def find(self, context: Context) -> Iterable[Finding]:
        """Also those that the record format refuses."""
        if context.kind != "pairs":
            return
        for split in context.splits.values():
            kept = [sample for sample in split.samples if plain(sample.responses[0]) == plain(sample.responses[1])]
            refused = [one for one in split.dropped if _equal(one.fields.get("chosen"), one.fields.get("rejected"))]
            hits: list[Sample | Dropped] = [*refused, *kept]
            yield from affected(
                split,
                hits,
                "pairs have equal responses, up to case and spaces",
                "remove them: they teach nothing, or only spaces",
                example=_chosen,
                total=len(split.samples) + len(split.dropped),
            )


def _chosen(record: Sample | Dropped) -> Example:
    return Example.of(record, str(record.fields.get("chosen")) if isinstance(record, Dropped) else None)


def _equal(chosen: Any, rejected: Any) -> bool:
    return chosen is not None and chosen == rejected


@dataclass(frozen=True)
class Ties(Check):
    """Pairs whose own scores say that neither response is better, or that the rejected one is."""

    share: float = 0.15
    """Share of scored pairs of each kind that may; fewer are a note, as people and judges disagree as often"""

    def find(self, context: Context) -> Iterable[Finding]:
        """Reads ``score_chosen`` and ``score_rejected``, and other common names of them."""
        if context.kind != "pairs":
            return
        for split in context.splits.values():
            scored = [(sample, scores) for sample in split.samples if (scores := _scores(sample)) is not None]
            for what, hits in (
                ("equal scores", [sample for sample, (chosen, rejected) in scored if chosen == rejected]),
                (
                    "a chosen response with the lower score",
                    [sample for sample, (chosen, rejected) in scored if chosen < rejected],
                ),
            ):
                yield from affected(
                    split,
                    hits,
                    f"scored pairs have {what}",
                    "remove them, or take the pairs with the largest difference",
                    total=len(scored),
                    note=self.share,
                )


def _scores(sample: Sample) -> tuple[float, float] | None:
    for names in _SCORES:
        chosen, rejected = (sample.fields.get(name) for name in names)
        if isinstance(chosen, int | float) and isinstance(rejected, int | float):
            return float(chosen), float(rejected)
    return None


@dataclass(frozen=True)
class ContradictingPairs(Check):
    """Pairs that another pair of the same prompt contradicts: A over B, and B over A."""

    def find(self, context: Context) -> Iterable[Finding]:
        """Within each split."""
        if context.kind != "pairs":
            return
        for split in context.splits.values():
            seen = {(sample.prompt, *sample.responses) for sample in split.samples}
            hits = [one for one in split.samples if (one.prompt, *reversed(one.responses)) in seen]
            hits = [one for one in hits if one.responses[0] != one.responses[1]]
            yield from affected(
                split,
                hits,
                "pairs contradict another pair of the same responses",
                "keep the majority's choice, or neither",
            )


@dataclass(frozen=True)
class LengthBias(Check):
    """Whether the longer response is usually the chosen one: what a reward model learns first."""

    severity = "note"
    share: float = 0.65
    """Share of pairs with a longer chosen response that warns, if the interval is beyond it; likewise shorter"""

    def find(self, context: Context) -> Iterable[Finding]:
        """The share with Wilson's 95% interval, and the mean difference in tokens with a normal one."""
        if context.kind != "pairs":
            return
        for split in context.splits.values():
            if len(split.samples) < 2:
                continue
            difference = np.diff(split.response_lengths[:, ::-1], axis=1)[:, 0]
            longer, decided = int((difference > 0).sum()), int((difference != 0).sum())
            if not decided:
                continue
            low, high = wilson(longer, decided)
            mean, error = difference.mean(), difference.std(ddof=1) / math.sqrt(len(difference))
            biased = low > self.share or high < 1 - self.share
            yield Finding(
                f"the chosen response is longer in {longer / decided:.1%} [{low:.1%}, {high:.1%}] of {decided:,} pairs "
                f"of unequal length, by {mean:+.1f} [{mean - _Z * error:+.1f}, {mean + _Z * error:+.1f}] tokens on "
                "average",
                "balance the lengths, or expect responses to grow (shrink): compare at equal length" if biased else "",
                count=longer,
                total=decided,
                split=split.name,
                severity="warning" if biased else None,
            )


def wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927).

    Args:
        count: successes.
        total: trials, at least 1.
    """
    share, weight = count / total, _Z * _Z / total
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return middle - half, middle + half


@dataclass(frozen=True)
class LabelBalance(Check):
    """Labels of feedback that are nearly all alike."""

    least: float = 0.05
    """Smallest share of either label"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        if context.kind != "feedback":
            return
        for split in context.splits.values():
            good = sum(sample.label is True for sample in split.samples)
            share = good / max(1, len(split.samples))
            if split.samples and not self.least <= share <= 1 - self.least:
                yield Finding(
                    f"{percent(good, len(split.samples))} responses are labelled desirable",
                    "collect labels of both kinds, or weight them",
                    count=good,
                    total=len(split.samples),
                    split=split.name,
                )


@dataclass(frozen=True)
class ContradictingLabels(Check):
    """Feedback that labels one response to one prompt both desirable and not."""

    def find(self, context: Context) -> Iterable[Finding]:
        """Within each split."""
        if context.kind != "feedback":
            return
        for split in context.splits.values():
            labels: dict[str, set[bool | None]] = {}
            for sample in split.samples:
                labels.setdefault(sample.text, set()).add(sample.label)
            hits = [sample for sample in split.samples if len(labels[sample.text]) > 1]
            yield from affected(
                split, hits, "responses are labelled both desirable and not", "keep the majority's label, or neither"
            )
