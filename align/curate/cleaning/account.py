"""What each step of a cleaning run removed: numbers from the statistics of its jobs, samples from the removed files."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.curate.cleaning.passes import Plan, Stage

_SAMPLES = 3
_LONGEST = 300
"""Characters of a sample"""
_SPLITS = ("train", "val")
_LOST = ("timeout", "clean_error", "broken_process")
"""Statistics of documents that datatrove's extractors could not read"""


@dataclass(frozen=True)
class Amount:
    """How much text."""

    documents: int
    bytes: int
    """Of UTF-8"""

    def __add__(self, other: "Amount") -> "Amount":
        """The sum."""
        return Amount(self.documents + other.documents, self.bytes + other.bytes)

    def __sub__(self, other: "Amount") -> "Amount":
        """What is missing."""
        return Amount(self.documents - other.documents, self.bytes - other.bytes)


@dataclass(frozen=True)
class Sample:
    """A removed document."""

    id: str
    reason: str
    """That the step gives; empty if it gives none"""
    text: str
    """Its beginning, in one line"""


@dataclass(frozen=True)
class StepAccount:
    """What a step did."""

    step: str
    """Its label"""
    source: str | None
    """That it was applied to; None: all"""
    before: Amount | None
    """What came in; None for a reader"""
    after: Amount
    """What went on"""
    reasons: dict[str, int]
    """Reason to documents removed, or kind of replacement to replacements"""
    seconds: float
    """Of work, over all tasks"""
    samples: list[Sample]
    """Of what it removed"""


@dataclass(frozen=True)
class Account:
    """What a cleaning run did."""

    read: Amount
    """From all sources"""
    kept: Amount
    """In the corpus"""
    splits: dict[str, Amount]
    """Of the corpus"""
    steps: list[StepAccount]
    """In order"""
    peak_mib: float
    """Most memory of one task's process"""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def account_of(plan: Plan, out: Path) -> Account:
    """The account of a run whose jobs are complete.

    Args:
        plan: that was run.
        out: its folder.
    """
    tables = {job.name: _Table(out / "logs" / job.name / "stats") for job in plan.jobs}
    steps: list[StepAccount] = []
    last: dict[str | None, Amount] = {}
    for stage in plan.stages:
        if stage.source is None and None not in last:
            last[None] = sum(last.values(), Amount(0, 0))
        after, reasons, seconds = _done(stage, tables)
        samples = _samples(out / "removed" / stage.label)
        steps.append(StepAccount(stage.label, stage.source, last.get(stage.source), after, reasons, seconds, samples))
        last[stage.source] = after
    split = tables[plan.jobs[-1].name].find("formatter: split")
    splits = {name: Amount(split.count(f"{name}_documents"), split.count(f"{name}_bytes")) for name in _SPLITS}
    return Account(
        sum((step.after for step in steps if step.before is None), Amount(0, 0)),
        sum(splits.values(), Amount(0, 0)),
        splits,
        steps,
        max(table.peak_mib for table in tables.values()),
    )


def _done(stage: Stage, tables: dict[str, "_Table"]) -> tuple[Amount, dict[str, int], float]:
    table = tables[stage.job]
    meter = table.find(f"meter: {stage.label}")
    block = table.before(meter)
    seconds = block.seconds + sum(row.seconds for name in stage.jobs for row in tables[name].rows)
    if stage.noted is not None:
        name, count = stage.noted
        seconds += sum(row.seconds for row in tables[name].rows[-count:])
    reasons = {
        name.removeprefix("dropped_").removeprefix("masked_"): count
        for name, count in block.counts.items()
        if name.startswith(("dropped_", "masked_")) or name in _LOST
    }
    return Amount(meter.count("documents"), meter.count("bytes")), reasons, seconds


class _Row:
    """The statistics of one block, over all tasks."""

    def __init__(self, name: str) -> None:
        self.name, self.seconds, self.counts = name, 0.0, Counter[str]()

    def count(self, name: str) -> int:
        return self.counts[name]


class _Table:
    """The statistics of a job, which datatrove wrote for each task."""

    def __init__(self, folder: Path) -> None:
        self.rows: list[_Row] = []
        self.peak_mib = 0.0
        for file in sorted(folder.glob("*.json")):
            blocks = json.loads(file.read_text())
            self.rows = self.rows or [_Row(block["name"]) for block in blocks]
            for row, block in zip(self.rows, blocks, strict=True):
                row.seconds += _total(block["time_stats"])
                values = {name: _total(value) for name, value in block["stats"].items()}
                self.peak_mib = max(self.peak_mib, float(values.pop("peak_mib", 0)))
                row.counts.update({name: int(value) for name, value in values.items()})

    def find(self, name: str) -> _Row:
        return next(row for row in self.rows if row.name == name)

    def before(self, row: _Row) -> _Row:
        return self.rows[self.rows.index(row) - 1]


def _total(value: Any) -> float:
    return value["total"] if isinstance(value, dict) else value


def _samples(folder: Path) -> list[Sample]:
    """The first few removed documents of each reason."""
    samples: list[Sample] = []
    seen = Counter[str]()
    for record in _records(sorted(folder.glob("*.jsonl.gz"))):
        metadata = record.get("metadata", {})
        reason = metadata.get("filter_reason", "")
        if seen[reason] < _SAMPLES:
            text = metadata.get("contaminated_ngram") or record["text"][: 2 * _LONGEST]
            samples.append(Sample(str(record["id"]), reason, " ".join(text.split())[:_LONGEST]))
        seen[reason] += 1
    return sorted(samples, key=lambda sample: sample.reason)


def _records(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)
