"""Constraints on punctuation, letters and digits."""

import re
from dataclasses import dataclass

from align.sandbox.constraints.constraint import Constraint


@dataclass(frozen=True)
class NoCommas(Constraint):
    """No comma."""

    kind = "no_commas"
    group = "punctuation"
    claims = frozenset({"commas"})
    phrasings = ("Do not use any commas.", "Write without commas.", "Your answer must not contain a single comma.")

    def _holds(self, text: str) -> bool:
        return "," not in text


@dataclass(frozen=True)
class EndsWithQuestion(Constraint):
    """The last character is a question mark."""

    kind = "ends_with_question"
    group = "punctuation"
    claims = frozenset({"end"})
    phrasings = (
        "End with a question mark.",
        "The last character of your answer must be a question mark.",
        "Close your answer with a question.",
    )

    def _holds(self, text: str) -> bool:
        return text.rstrip('"”*').endswith("?")


@dataclass(frozen=True)
class EndsWithExclamation(Constraint):
    """The last character is an exclamation mark."""

    kind = "ends_with_exclamation"
    group = "punctuation"
    claims = frozenset({"end"})
    phrasings = (
        "End with an exclamation mark.",
        "The last character of your answer must be an exclamation mark.",
        "Close your answer with an exclamation mark.",
    )

    def _holds(self, text: str) -> bool:
        return text.rstrip('"”*').endswith("!")


@dataclass(frozen=True)
class Exclamations(Constraint):
    """At least ``least`` exclamation marks."""

    kind = "exclamations"
    group = "punctuation"
    claims = frozenset({"exclamations"})
    phrasings = (
        "Use {least} or more exclamation marks.",
        "Your answer must contain {least} or more exclamation marks.",
        "Sound excited and write {least} or more exclamation marks!",
    )
    choices = ((1,), (2,))

    least: int

    def _holds(self, text: str) -> bool:
        return text.count("!") >= self.least


@dataclass(frozen=True)
class Parentheses(Constraint):
    """At least ``least`` remarks in round brackets."""

    kind = "parentheses"
    group = "punctuation"
    claims = frozenset({"parentheses"})
    phrasings = (
        "Include {least} or more remarks in round brackets (like this).",
        "Put {least} or more parts of your answer in parentheses (like these words).",
    )
    choices = ((1,), (2,))

    least: int

    def _holds(self, text: str) -> bool:
        return len(re.findall(r"\([^()]*\w[^()]*\)", text)) >= self.least


@dataclass(frozen=True)
class LetterAtMost(Constraint):
    """A letter occurs at most ``most`` times, in either case."""

    kind = "letter_at_most"
    group = "letters"
    claims = frozenset({"letters"})
    phrasings = (
        'The letter "{letter}" may occur at most {most} times.',
        'Use the letter "{letter}" no more than {most} times.',
    )
    choices = (("b", 2), ("b", 3), ("g", 3), ("g", 4), ("k", 1), ("k", 2), ("p", 3), ("p", 4), ("v", 1), ("v", 2))

    letter: str
    most: int

    def _holds(self, text: str) -> bool:
        return text.lower().count(self.letter) <= self.most


@dataclass(frozen=True)
class LetterAtLeast(Constraint):
    """A letter occurs at least ``least`` times, in either case."""

    kind = "letter_at_least"
    group = "letters"
    claims = frozenset({"letters"})
    phrasings = (
        'The letter "{letter}" must occur at least {least} times.',
        'Use the letter "{letter}" {least} or more times.',
    )
    choices = tuple((letter, least) for letter in "bfgkmpvwy" for least in (4, 5, 6, 8))

    letter: str
    least: int

    def _holds(self, text: str) -> bool:
        return text.lower().count(self.letter) >= self.least


@dataclass(frozen=True)
class NumbersAtLeast(Constraint):
    """At least ``least`` numbers in digits."""

    kind = "numbers_at_least"
    group = "digits"
    claims = frozenset({"digits"})
    phrasings = (
        "Include {least} or more numbers, written in digits.",
        "Your answer must contain {least} or more numbers in digits, such as 7 or 25.",
        "Mention {least} or more numbers and write them in digits, like 10.",
    )
    choices = ((1,), (2,))

    least: int

    def _holds(self, text: str) -> bool:
        return len(re.findall(r"\d+(?:[.,]\d+)*", text)) >= self.least
