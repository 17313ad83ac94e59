"""Constraints on the response as a whole: repeating the request, two answers."""

import re
from dataclasses import dataclass
from random import Random
from typing import Self

from align.sandbox.constraints.constraint import Constraint, Request

SEPARATOR = "******"


@dataclass(frozen=True)
class RepeatRequest(Constraint):
    """The response begins with the request, word for word, and goes beyond it."""

    kind = "repeat_request"
    group = "combination"
    claims = frozenset(
        {"start", "sentences", "shape", "words", "case", "commas", "letters", "keywords", "common_words"}
    )
    phrasings = (
        "First repeat my request word for word without this sentence, then answer it.",
        "Before you answer, copy my request exactly, leaving out this sentence.",
    )

    request: str

    @classmethod
    def sample(cls, rng: Random, request: Request) -> Self:
        """See ``Constraint``."""
        return cls(request.text)

    def _holds(self, text: str) -> bool:
        written, wanted = (" ".join(part.lower().split()) for part in (text.lstrip('"“*'), self.request))
        return written.startswith(wanted) and any(map(str.isalnum, written[len(wanted) :]))


@dataclass(frozen=True)
class TwoAnswers(Constraint):
    """Two different parts, with six asterisks between them."""

    kind = "two_answers"
    group = "combination"
    claims = frozenset({"shape", "sentences", "marks", "end"})
    phrasings = (
        "Give two different answers, separated by six asterisks: ******.",
        "Write two versions of your answer with ****** between them.",
    )

    def _holds(self, text: str) -> bool:
        parts = [part.strip() for part in re.split(r"\*{6,}", text)]
        return len(parts) == 2 and all(parts) and parts[0] != parts[1]
