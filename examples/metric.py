"""A comparison metric: the share of responses that thank.

align compare sft=runs/tiny/sft dpo=runs/tiny/dpo --metric metric.Politeness --out report
"""

from collections.abc import Sequence
from dataclasses import dataclass

from align.compare import Metric, Response
from align.rewards import Prompt


@dataclass(frozen=True)
class Politeness(Metric):
    """Share of responses with a polite word."""

    label = "polite"
    meaning = "Share of responses that thank."
    is_share = True

    word: str = "thank"
    """In lower case"""

    def measure(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> list[list[float]]:
        """One value per response, so that the mean gets an interval."""
        return [[float(self.word in response.text.lower()) for response in row] for row in responses]
