"""Constraints on case."""

import re
from dataclasses import dataclass

from align.sandbox.constraints.constraint import Constraint


@dataclass(frozen=True)
class Lowercase(Constraint):
    """No capital letter."""

    kind = "lowercase"
    group = "case"
    claims = frozenset({"case"})
    phrasings = (
        "Write in lowercase letters only.",
        "Use no capital letters at all.",
        "Your entire answer must be in small letters, without any capitals.",
    )

    def _holds(self, text: str) -> bool:
        return text.islower()


@dataclass(frozen=True)
class Uppercase(Constraint):
    """No small letter."""

    kind = "uppercase"
    group = "case"
    claims = frozenset({"case"})
    phrasings = (
        "Write in capital letters only.",
        "Your entire answer must be in ALL CAPS.",
        "Use only uppercase letters.",
    )

    def _holds(self, text: str) -> bool:
        return text.isupper()


@dataclass(frozen=True)
class TitleCase(Constraint):
    """Every word begins with a capital letter."""

    kind = "title_case"
    group = "case"
    claims = frozenset({"case"})
    phrasings = (
        "Begin Every Word With A Capital Letter.",
        "Every word of your answer must begin with a capital letter.",
        "Write Your Whole Answer In Title Case, with a capital at the start of every word.",
    )

    def _holds(self, text: str) -> bool:
        initials = re.findall(r"(?<![\w'’])[^\W\d_]", text)
        return bool(initials) and all(map(str.isupper, initials))


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
