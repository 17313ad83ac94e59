"""Constraints on the response as a whole: it repeats the request, it has two parts."""

import re
from dataclasses import dataclass
from random import Random
from typing import Self

from align.sandbox.constraints.constraint import Constraint, Request
from align.sandbox.constraints.editing import sentences_of


@dataclass(frozen=True)
class RepeatRequest(Constraint):
    """The response begins with the request, word for word but for case and a full stop, and goes beyond it."""

    kind = "repeat_request"
    group = "combination"
    claims = frozenset(
        {"start", "sentences", "shape", "words", "case", "commas", "letters", "keywords", "common_words"}
    )
    phrasings = (
        'Repeat "{request}" first, and then answer it.',
        'Start your answer by repeating "{request}" word for word.',
    )

    request: str

    @classmethod
    def sample(cls, rng: Random, request: Request) -> Self:
        """See ``Constraint``."""
        return cls(request.text)

    def _holds(self, text: str) -> bool:
        written, wanted = (" ".join(part.lower().split()) for part in (text.lstrip('"“*'), self.request.rstrip(".")))
        return written.startswith(wanted) and any(map(str.isalnum, written[len(wanted) :]))

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return f"{self.request}\n{draft}"


@dataclass(frozen=True)
class TwoAnswers(Constraint):
    """Two different parts, with three asterisks or more between them."""

    kind = "two_answers"
    group = "combination"
    claims = frozenset({"shape", "sentences", "marks", "end"})
    phrasings = (
        "Give two different answers, separated by three asterisks: one *** two.",
        "Write two versions of your answer with *** between them.",
    )

    def _holds(self, text: str) -> bool:
        parts = [part.strip() for part in re.split(r"\*{3,}", text)]
        return len(parts) == 2 and all(parts) and parts[0] != parts[1]

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        parts = sentences_of(draft, 2, request, rng)
        half = len(parts) // 2
        return f"{' '.join(parts[:half])}\n***\n{' '.join(parts[half:])}"
