"""Constraints on punctuation, letters and digits."""

import re
from dataclasses import dataclass
from random import Random

from align.sandbox.constraints.constraint import NUMBER_WORDS, Constraint
from align.sandbox.constraints.editing import add_clause, append, sentences_by_line, trimmed, without
from align.sandbox.constraints.english import REMARKS, wording
from align.sandbox.world import pick

_CLAUSE = re.compile(r", ((?:which|such as|like|especially|including|even|for example)\b[^,.()!?\n]{5,60})(?=[,.!?])")
_END = re.compile(r"(?<=\w)[.!?](?=\s|\Z)")
_PAUSE = re.compile(r"(?<=\w)(?:,| (?:and|because|when|but|while)\b)(?= )")
"""Where a remark may stand: before the end of a sentence, or before a pause in it"""
_CLAUSE_RATE = 0.5
"""How often a number comes in a clause of the last sentence instead of a sentence of its own"""


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

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return append(draft, pick(rng, wording(request).questions))


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

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return re.sub(r"[.,:;!]*([\"')\]*_]*)\Z", r"!\1", draft, count=1).rstrip("')]_")


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

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        ends = [found.start() for found in re.finditer(r"(?<=\w)\.(?=\s|\Z)(?<!\d\.)", draft)]
        for end in ends[len(ends) - max(0, self.least - draft.count("!")) :] if ends else ():
            draft = f"{draft[:end]}!{draft[end + 1 :]}"
        return draft if self._holds(draft) else f"{draft} Enjoy it!"


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

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        text = _CLAUSE.sub(r" (\1)", draft, count=self.least)
        remarks = list(REMARKS)
        for gap in (_END, _PAUSE):
            for found in reversed(list(gap.finditer(text))):
                if not self._holds(text):
                    remarks.remove(chosen := pick(rng, remarks))
                    text = f"{text[: found.start()]} {chosen}{text[found.start() :]}"
        return text


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

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        text = draft
        while not self._holds(text) and len(parts := sentences_by_line(text)) > 1:
            worst = max(parts, key=lambda part: part.lower().count(self.letter))
            text = without(text, lambda part: part == worst)  # noqa: B023
        return text if self._holds(text) else trimmed(text, self._holds)


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

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        text = draft
        for number in range(2, len(NUMBER_WORDS)):
            text = re.sub(rf"(?<![\w-]){NUMBER_WORDS[number]}(?![\w-])", str(number), text)
        if not self._holds(text) and rng.random() < _CLAUSE_RATE:
            text = add_clause(text, wording(request).number_clause)
        choices = list(wording(request).numbers)
        while not self._holds(text):
            choices.remove(chosen := pick(rng, choices))
            text = append(text, chosen)
        return text
