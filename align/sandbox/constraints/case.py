"""Constraints on case."""

import re
from dataclasses import dataclass
from random import Random

from align.sandbox.constraints.constraint import Constraint


@dataclass(frozen=True)
class Lowercase(Constraint):
    """No capital letter."""

    kind = "lowercase"
    group = "case"
    claims = frozenset({"case"})
    phrasings = (
        "write in small letters only, like this sentence.",
        "Use no capital letters at all.",
        "Your entire answer must be in lowercase letters, without any capitals.",
    )

    def _holds(self, text: str) -> bool:
        return text.islower()

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return draft.lower()


@dataclass(frozen=True)
class Uppercase(Constraint):
    """No small letter."""

    kind = "uppercase"
    group = "case"
    claims = frozenset({"case"})
    phrasings = (
        "WRITE IN CAPITAL LETTERS ONLY, LIKE THIS SENTENCE.",
        "YOUR ENTIRE ANSWER MUST BE IN ALL CAPS.",
        "Use only uppercase letters.",
    )

    def _holds(self, text: str) -> bool:
        return text.isupper()

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return draft.upper()


@dataclass(frozen=True)
class CapitalWords(Constraint):
    """At least ``least`` words of two or more letters in capitals."""

    kind = "capital_words"
    group = "case"
    claims = frozenset({"case"})
    phrasings = (
        "Write {least} or more words in ALL CAPITALS.",
        "Your answer must contain {least} or more words that are fully CAPITALIZED.",
        "Emphasize {least} or more words by writing them in CAPITAL letters.",
    )
    choices = ((1,), (2,))

    least: int

    def _holds(self, text: str) -> bool:
        return sum(word.isupper() for word in re.findall(r"[^\W\d_]{2,}", text)) >= self.least
