"""What a check is, and what it finds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from align.curate.context import Context, Dropped, Sample, Split

Severity = Literal["error", "warning", "note"]
"""error: training would be wrong or stop; warning: probably not intended; note: good to know"""

Hit = TypeVar("Hit")

_SHOWN = 3
"""Examples of a finding"""
_LONGEST = 160


class Example(NamedTuple):
    """Where something was found.

    Attributes:
        where: file and line.
        text: what stands there, in one line.
    """

    where: str
    text: str

    @classmethod
    def of(cls, record: Sample | Dropped, text: str | None = None) -> "Example":
        """A record, with a text in one line.

        Args:
            record: that is affected.
            text: what to show of it; None: all of it.
        """
        return cls(record.where, shown(record.text if text is None else text))


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    message: str
    """One line with the numbers"""
    fix: str = ""
    """What to change; empty for a note that needs no change"""
    count: int | None = None
    """Records or rows concerned; None: it concerns settings"""
    total: int | None = None
    """Of how many"""
    split: str | None = None
    """train, validation or test; None: all, or none in particular"""
    examples: Sequence[Example] = ()
    """The first few"""
    severity: Severity | None = None
    """None: that of the check"""

    def as_dict(self) -> dict[str, Any]:
        """JSON values; ``share`` is count / total."""
        share = self.count / self.total if self.count is not None and self.total else None
        return asdict(self) | {"share": share, "examples": [example._asdict() for example in self.examples]}


class Check(ABC):
    """Looks for one kind of mistake. Subclass it as a frozen dataclass whose fields are thresholds.

    Attributes:
        severity: of its findings, unless a finding has its own.
    """

    severity: Severity = "warning"

    @property
    def name(self) -> str:
        """Its class name."""
        return type(self).__name__

    @abstractmethod
    def find(self, context: Context) -> Iterable[Finding]:
        """What is wrong; nothing if all is well.

        Args:
            context: of one stage; not to be changed.
        """


def shown(text: str) -> str:
    """A text in one line, shortened for a report."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def affected(
    split: Split,
    hits: Sequence[Hit],
    what: str,
    fix: str,
    *,
    example: Callable[[Hit], Example] = Example.of,  # type: ignore[assignment]
    total: int | None = None,
    silent: float = 0.0,
    note: float = 0.0,
    severity: Severity | None = None,
) -> Iterator[Finding]:
    """The finding that some samples of a split are affected; nothing if none is.

    Args:
        split: of the samples.
        hits: one for each affected sample.
        what: continues the message after ``3 of 200 (1.5%)``.
        fix: what to change.
        example: shows a hit; by default the text of a sample.
        total: samples that could be affected; None: all of the split.
        silent: share of the total that may be affected without a finding.
        note: share of the total up to which the finding is a note.
        severity: beyond that share; None: that of the check.
    """
    total = len(split.samples) if total is None else total
    if len(hits) <= silent * total:
        return
    yield Finding(
        f"{percent(len(hits), total)} {what}",
        fix,
        count=len(hits),
        total=total,
        split=split.name,
        examples=[example(hit) for hit in hits[:_SHOWN]],
        severity="note" if len(hits) <= note * total else severity,
    )


def percent(count: int, total: int) -> str:
    """``3 of 200 (1.5%)``."""
    return f"{count:,} of {total:,} ({count / max(1, total):.1%})"
