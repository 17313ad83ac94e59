"""A check of align doctor: responses that don't end with a full stop.

align doctor --config sft.yaml --doctor.checks+=doctor_check.FullStop
"""

from collections.abc import Iterator
from dataclasses import dataclass

from align.curate import Check, Context, Finding
from align.curate.check import Example, affected


@dataclass(frozen=True)
class FullStop(Check):
    """Warns when more than a share of a split's responses end without a mark."""

    share: float = 0.1
    """Share of responses that may"""
    marks: str = ".!?"
    """Characters that end a sentence"""

    def find(self, context: Context) -> Iterator[Finding]:
        """Look at the last response of each record."""
        for split in context.splits.values():
            answered = [sample for sample in split.samples if sample.responses]
            without = [one for one in answered if not one.responses[-1].rstrip().endswith(tuple(self.marks))]
            yield from affected(
                split,
                without,
                "responses end without a full stop",
                "complete the sentences, or remove the records",
                example=lambda sample: Example.of(sample, sample.responses[-1][-60:]),
                total=len(answered),
                silent=self.share,
            )
