"""What all peers of the alignment benchmark share: the same rows of tokens, as ids and as texts, and the clock.

It needs only the standard library, because one peer has its own environment.
"""

import random
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import Meter, Numbers

PAD, BOS, USER, ASSISTANT, END = 256, 257, 260, 261, 262
"""Special ids of the tokenizers that align trains: 256 bytes come before them"""
FIRST = 263
"""From here on an id is a word of the text"""


class Row(NamedTuple):
    """A preference pair as ids: the prompt up to the assistant's turn, and two responses with their end tokens."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def make_rows(count: int, lengths: str, vocab: int, *, span: tuple[int, int] = (16, 112), seed: int = 0) -> list[Row]:
    """Random rows.

    Args:
        count: how many.
        lengths: fixed: every part has the mean length of ``span``; mixed: any length in it, both ends included.
        vocab: number of ids.
        span: shortest and longest part, tokens, those of the template included.
        seed: of all random numbers.
    """
    draw = random.Random(f"{seed} {lengths}")

    def content(taken: int) -> list[int]:
        length = sum(span) // 2 if lengths == "fixed" else draw.randint(*span)
        return [draw.randrange(FIRST, vocab) for _ in range(length - taken)]

    return [Row([BOS, USER, *content(4), END, ASSISTANT], [*content(1), END], [*content(1), END]) for _ in range(count)]


def words(ids: list[int]) -> str:
    """A text that tokenizers of both sides turn into exactly these ids."""
    return "".join(f" {word(number)}" for number in ids)


def word(number: int) -> str:
    """The word for an id."""
    return f"t{number:05d}"


class Clock:
    """Means over the steps after the warm-up; call ``tick`` after each step."""

    def __init__(self, *, warmup: int, steps: int) -> None:
        """Wait for ``warmup`` (at least 1) and then ``steps`` ticks."""
        self.warmup, self.steps, self.ticks = warmup, steps, 0
        self.meter = Meter()

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks == self.warmup:
            self.meter.__enter__()
        elif self.ticks == self.warmup + self.steps:
            self.meter.__exit__()

    def numbers(self, *, reference_cpu: float | None = None) -> Numbers:
        """Seconds per step.

        Args:
            reference_cpu: CPU seconds of computing the reference log-probs of all rows, before the first step; a
                step's share of them is added to its own in ``cpu_s_with_reference``, as if the run were one pass.
        """
        if self.ticks < self.warmup + self.steps:
            raise RuntimeError(f"{self.ticks} steps were done instead of {self.warmup} + {self.steps}")
        found = {"cpu_s": self.meter.cpu / self.steps, "wall_s": self.meter.wall / self.steps}
        if reference_cpu is not None:
            found["cpu_s_with_reference"] = found["cpu_s"] + reference_cpu / self.steps
        return found
