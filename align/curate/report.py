"""The report of the doctor: JSON, text for a terminal, and what both and the HTML page show of a stage."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from align.curate.check import Severity
from align.curate.checks.tokens import QUANTILES, histogram
from align.curate.context import Context, Sample, Split
from align.curate.doctor import Diagnosis
from align.tokenizer import Tokenizer

VERSION = 1
"""Of the JSON report; increased when a field changes its meaning or goes"""

_SHOWN = 3
_IN_TERMINAL, _IN_JSON = 220, 1500
_COLOURS: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "dim"}
_BAR = 32


class ShownToken(NamedTuple):
    """A token for display.

    Attributes:
        text: as it is in the text; special tokens by name.
        target: whether it is trained on.
        special: whether it is a special token.
    """

    text: str
    target: bool
    special: bool


class ShownSample(NamedTuple):
    """A sample for display.

    Attributes:
        where: file and line.
        title: ``chosen`` or ``rejected``; empty where there is one row.
        tokens: of a row.
    """

    where: str
    title: str
    tokens: Sequence[ShownToken]


@dataclass(frozen=True)
class StageReport:
    """What was found in one stage."""

    name: str
    """Of the stage in its pipeline, or its class name"""
    stage: str
    """Class name of the stage; empty if it was not checked"""
    diagnoses: Sequence[Diagnosis] = ()
    splits: Mapping[str, Split] | None = None
    samples: Sequence[ShownSample] = ()
    not_checked: str = ""
    """Why the stage was not checked"""
    seconds: float = 0.0

    def counts(self) -> Counter[str]:
        """Findings by severity."""
        return Counter(one.severity for one in self.diagnoses)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; see docs/doctor.md."""
        return {
            "name": self.name,
            "stage": self.stage,
            "checked": not self.not_checked,
            "why_not": self.not_checked or None,
            "seconds": round(self.seconds, 2),
            "findings": [one.as_dict() for one in self.diagnoses],
            "splits": {name: _numbers(split) for name, split in (self.splits or {}).items()},
            "examples": [
                {
                    "where": sample.where,
                    "title": sample.title or None,
                    "tokens": [token._asdict() for token in sample.tokens[:_IN_JSON]],
                }
                for sample in self.samples
            ],
        }


def report_of(context: Context, diagnoses: Sequence[Diagnosis], *, name: str, seconds: float) -> StageReport:
    """The report of a stage that was checked.

    Args:
        context: of the stage.
        diagnoses: what the checks found.
        name: of the stage.
        seconds: that it took.
    """
    samples = context.train.samples
    chosen = [samples[i] for i in dict.fromkeys((0, len(samples) // 2, len(samples) - 1))] if samples else []
    shown = [one for sample in chosen[:_SHOWN] for one in shown_rows(sample, context.tokenizer)]
    return StageReport(name, context.stage, diagnoses, context.splits, shown, seconds=seconds)


def shown_rows(sample: Sample, tokenizer: Tokenizer) -> Iterator[ShownSample]:
    """The rows of a sample as tokens."""
    special = set(tokenizer.special_tokens.values())
    titles = ("chosen", "rejected") if len(sample.rows) == 2 else ("",)
    for title, (ids, mask) in zip(titles, sample.rows, strict=True):
        tokens = [
            ShownToken(tokenizer.token_text(number), target, number in special)
            for number, target in zip(ids[:_IN_JSON].tolist(), mask[:_IN_JSON].tolist(), strict=True)
        ]
        yield ShownSample(sample.where, title, tokens)


def as_json(reports: Sequence[StageReport]) -> dict[str, Any]:
    """The whole report as JSON values; ``passed`` is whether there is no error."""
    counts = sum((report.counts() for report in reports), Counter[str]())
    return {
        "version": VERSION,
        "passed": not counts["error"],
        "counts": {severity: counts[severity] for severity in _COLOURS},
        "stages": [report.as_dict() for report in reports],
    }


def _numbers(split: Split) -> dict[str, Any]:
    read = len(split.samples) + len(split.dropped)
    found: dict[str, Any] = {
        "records": read if split.records is None else split.records,
        "read": read,
        "used": len(split.samples),
        "dropped": len(split.dropped),
        "tokens": split.tokens,
        "targets": sum(int(row.mask.sum()) for sample in split.samples for row in sample.rows),
    }
    if split.samples:
        values = np.quantile(split.lengths, QUANTILES, method="nearest").tolist()
        found["lengths"] = {f"{q:g}": int(value) for q, value in zip(QUANTILES, values, strict=True)}
        found["histogram"] = [list(one) for one in histogram(split)]
    return found


def print_report(reports: Sequence[StageReport], console: Console, *, samples: bool = True) -> None:
    """Print the findings, the length of the records, and samples with their targets underlined.

    Args:
        reports: of the stages.
        console: to print on.
        samples: False leaves out histograms and samples.
    """
    for report in reports:
        console.print(Text(f"{report.name} ({report.stage})" if report.stage else report.name, style="bold"))
        if report.not_checked:
            console.print(Text(f"  not checked: {report.not_checked}", style="dim"))
            continue
        for one in report.diagnoses:
            console.print(_line(one))
        if samples:
            for name, split in (report.splits or {}).items():
                _print_histogram(name, split, console)
            for number, sample in enumerate(report.samples, 1):
                _print_sample(number, sample, console)
        console.print()
    counts = as_json(reports)["counts"]
    console.print(", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items()))


def _line(one: Diagnosis) -> Text:
    finding = one.finding
    where = f"{finding.split}: " if finding.split else ""
    line = Text("  ")
    line.append(f"{one.severity:<8}", style=_COLOURS[one.severity])
    line.append(f"{one.check}: ", style="cyan")
    line.append(where + finding.message, style="dim" if one.severity == "note" else "")
    if finding.fix:
        line.append(f"\n          fix: {finding.fix}")
    for example in finding.examples:
        line.append(f"\n          {example.where}", style="dim")
        line.append(f"  {example.text}" if example.text else "", style="dim italic")
    return line


def _print_histogram(name: str, split: Split, console: Console) -> None:
    if not split.samples:
        return
    bins = histogram(split)
    most, width = max(count for _, _, count in bins), len(str(bins[-1][1]))
    console.print(Text(f"  {name}: tokens per record", style="bold"))
    for low, high, count in bins:
        bar = "█" * max(int(count > 0), round(_BAR * count / most))
        console.print(Text(f"  {low:>{width}}-{high:<{width}} {bar} {count:,}"))


def _print_sample(number: int, sample: ShownSample, console: Console) -> None:
    title = f", {sample.title}" if sample.title else ""
    console.print(Text(f"  example {number}{title} ({sample.where}); targets are green and underlined", style="bold"))
    text = Text("  ")
    for index, token in enumerate(sample.tokens):
        if index == _IN_TERMINAL:
            text.append(f" ... {len(sample.tokens) - index} more tokens", style="dim")
            break
        style = "green underline" if token.target else "default"
        style += " bold" if token.special else ""
        style += " on grey15" if index % 2 else ""
        text.append(token.text.replace("\n", "⏎\n  "), style=style)
    console.print(text)
