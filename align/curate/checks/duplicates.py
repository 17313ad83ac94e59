"""Checks of records that occur twice: within a split, across splits, and across the stages of a pipeline."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align.curate.check import Check, Example, Finding, affected, shown
from align.curate.context import Context, Sample, Split, Unit, plain
from align.curate.minhash import joined, near_duplicates


def _noun(split: Split) -> str:
    return "paragraphs" if split.in_paragraphs else "records"


def _copy(hit: tuple[Unit, Unit]) -> Example:
    unit, first = hit
    return Example(f"{unit.sample.where} = {first.sample.where}", shown(unit.text))


@dataclass(frozen=True)
class ExactDuplicates(Check):
    """Records that occur more than once, up to case and spaces."""

    share: float = 0.01
    """Share of records that may repeat another; fewer are a note"""

    def find(self, context: Context) -> Iterable[Finding]:
        """Counts all but the first of equal records."""
        for split in context.splits.values():
            units = split.units
            first: dict[str, Unit] = {}
            yield from affected(
                split,
                [(unit, first[unit.key]) for unit in units if first.setdefault(unit.key, unit) is not unit],
                f"{_noun(split)} repeat an earlier one exactly",
                "remove the copies: repeated records count more than others and are memorized",
                example=_copy,
                total=len(units),
                note=self.share,
            )


@dataclass(frozen=True)
class NearDuplicates(Check):
    """Records that nearly repeat another, by the words they share in runs of three (``align/curate/minhash.py``)."""

    similarity: float = 0.8
    """Least Jaccard similarity of the sets of word runs"""
    share: float = 0.05
    """Share of records that may; fewer are a note"""

    def find(self, context: Context) -> Iterable[Finding]:
        """Exact copies aside."""
        for split in context.splits.values():
            units = split.units
            groups = near_duplicates(split.sketch, threshold=self.similarity)
            first = {unit.key: number for number, unit in reversed([*enumerate(units)])}
            distinct = np.array([first[unit.key] == number for number, unit in enumerate(units)], dtype=bool)
            # The two responses of a pair, read as feedback, may well be alike.
            records = np.array([unit.sample.where for unit in units])
            own = (records == records[groups]) & (not split.in_paragraphs)
            near = np.flatnonzero(distinct & (groups != np.arange(len(units))) & ~own)
            yield from affected(
                split,
                [(units[i], units[groups[i]]) for i in near.tolist()],
                f"distinct {_noun(split)} nearly repeat another",
                "keep one of each group, unless the differences are what the model is to learn",
                example=_copy,
                total=int(distinct.sum()),
                note=self.share,
            )


@dataclass(frozen=True)
class SplitOverlap(Check):
    """Held-out records that training sees too: validation then measures memory."""

    similarity: float = 0.8
    """Least Jaccard similarity of near copies"""
    share: float = 0.01
    """Share of held-out records that may overlap; fewer are a note"""

    def find(self, context: Context) -> Iterable[Finding]:
        """Whole records exactly or nearly, and prompts exactly."""
        for split in context.held_out:
            yield from _overlap(context.train, split, context, self)


def _overlap(train: Split, split: Split, context: Context, check: "SplitOverlap") -> Iterator[Finding]:
    seen, held_out = train.units, split.units
    if not seen or not held_out:
        return
    first = {unit.key: unit for unit in reversed(seen)}
    copies = {number: first[unit.key] for number, unit in enumerate(held_out) if unit.key in first}
    groups = near_duplicates(joined(train.sketch, split.sketch), threshold=check.similarity)
    for number in range(len(held_out)):
        group = int(groups[len(seen) + number])
        if group < len(seen):
            copies.setdefault(number, seen[group])
    noun, total = _noun(split), len(held_out)
    exact = sum(unit.key in first for unit in held_out)
    yield from affected(
        split,
        [(held_out[number], copies[number]) for number in sorted(copies)],
        f"{noun} are in the training data too, {exact:,} of them exactly",
        "remove them from one of the two",
        example=_copy,
        total=total,
        note=check.share,
    )
    prompts = _by_prompt(train.samples)
    shared = [
        (unit.sample, prompts[plain(unit.sample.prompt)])
        for number, unit in enumerate(held_out)
        if number not in copies and unit.sample.prompt and plain(unit.sample.prompt) in prompts
    ]
    if context.kind != "prompts":
        yield from affected(
            split,
            shared,
            f"{noun} share a prompt with the training data, with another response",
            "split by prompt, so that no prompt is on both sides",
            example=lambda hit: Example(f"{hit[0].where} = {hit[1].where}", shown(hit[0].prompt)),
            total=total,
            note=check.share,
        )


def _by_prompt(samples: Sequence[Sample]) -> Mapping[str, Sample]:
    return {plain(sample.prompt): sample for sample in reversed(samples) if sample.prompt}


@dataclass(frozen=True)
class StageOverlap(Check):
    """Prompts that this stage holds out and an earlier one of the pipeline trains on.

    The other way round is a note: what the earlier stage measured stands, but can't be measured again.
    """

    share: float = 0.01
    """Share of held-out records that may overlap; fewer are a note"""

    def find(self, context: Context) -> Iterable[Finding]:
        """Prompts exactly; documents as records."""
        for name, other in context.others.items():
            yield from self._shared(other.train, context.held_out, f"training data of {name}", harms=True)
            held_out = f"training data of this stage, and {name} holds them out"
            yield from self._shared(context.train, other.held_out, held_out, harms=False)

    def _shared(self, train: Split, held_out: Iterable[Split], where: str, *, harms: bool) -> Iterator[Finding]:
        trained = {_key(sample) for sample in train.samples}
        for split in held_out:
            yield from affected(
                split,
                [sample for sample in split.samples if _key(sample) in trained],
                f"prompts are in the {where}",
                "hold the same prompts out of every stage",
                example=lambda one: Example.of(one, one.prompt or one.text),
                note=self.share,
                severity=None if harms else "note",
            )


def _key(sample: Sample) -> str:
    return plain(sample.prompt or sample.text)
