"""What a check is, and what it finds."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from align.curate.context import Context, Sample

Severity = Literal["error", "warning", "note"]
"""error: training would be wrong or stop; warning: probably not intended; note: good to know"""

SHOWN = 3
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


def examples(samples: Iterable[Sample], text: Any = None) -> list[Example]:
    """The first few samples.

    Args:
        samples: concerned.
        text: what to show of a sample; None: all of it.
    """
    found = []
    for sample in samples:
        found.append(Example(sample.where, shown(sample.text if text is None else text(sample))))
        if len(found) == SHOWN:
            break
    return found


def percent(count: int, total: int) -> str:
    """``3 of 200 (1.5%)``."""
    return f"{count:,} of {total:,} ({count / max(1, total):.1%})"
