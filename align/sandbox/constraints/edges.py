"""Constraints on how a response begins and ends."""

import re
from dataclasses import dataclass
from random import Random

from align.sandbox.constraints.constraint import Constraint
from align.sandbox.constraints.editing import append, opened
from align.sandbox.constraints.english import OPENINGS, spoken, wording
from align.sandbox.world import pick


@dataclass(frozen=True)
class FirstWord(Constraint):
    """The first word, whatever its case."""

    kind = "first_word"
    group = "start and end"
    claims = frozenset({"start"})
    phrasings = (
        'The first word of your answer must be "{word}".',
        'Start with the word "{word}".',
        'Let your answer open with the word "{word}".',
    )
    choices = (("Today",), ("Sometimes",), ("First",), ("Usually",), ("Yes",), ("Honestly",), ("When",), ("Imagine",))

    word: str

    def _holds(self, text: str) -> bool:
        return _begins(text, self.word)

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        clause, sentence = OPENINGS.get(self.word, (f"{self.word}, ", f"{self.word}, here is my answer."))
        return opened(draft, clause, sentence)


@dataclass(frozen=True)
class BeginsWith(Constraint):
    """The first words, whatever their case."""

    kind = "begins_with"
    group = "start and end"
    claims = frozenset({"start"})
    phrasings = (
        'Begin your answer with the phrase "{phrase}".',
        'Your answer must start with "{phrase}".',
        'Open with exactly these words: "{phrase}".',
    )
    choices = (
        ("Here is my answer",),
        ("In my opinion",),
        ("Good question",),
        ("To be honest",),
        ("Let me think",),
        ("My dear friend",),
        ("Once in a while",),
        ("It is well known that",),
    )

    phrase: str

    def _holds(self, text: str) -> bool:
        return _begins(text, self.phrase)


@dataclass(frozen=True)
class EndsWith(Constraint):
    """The last words, whatever their case; punctuation may follow."""

    kind = "ends_with"
    group = "start and end"
    claims = frozenset({"end"})
    phrasings = (
        'End your answer with the phrase "{phrase}".',
        'Finish with exactly these words: "{phrase}".',
        'The very end of your answer must be "{phrase}".',
    )
    choices = (
        ("I hope this helps",),
        ("Nothing more",),
        ("Take care",),
        ("Best wishes",),
        ("Stay curious",),
        ("Keep smiling",),
        ("Many thanks",),
        ("Does that help?",),
    )

    phrase: str

    def _holds(self, text: str) -> bool:
        return _ends(text, self.phrase)

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return append(draft, self.phrase if self.phrase[-1] in ".!?" else f"{self.phrase}.")


@dataclass(frozen=True)
class LastWord(Constraint):
    """The last word, whatever its case; punctuation may follow."""

    kind = "last_word"
    group = "start and end"
    claims = frozenset({"end"})
    phrasings = (
        'The last word of your answer must be "{word}".',
        'Finish with the word "{word}".',
        'Let your answer close with the word "{word}".',
    )
    choices = (("done",), ("today",), ("everyone",), ("cheers",), ("home",), ("again",), ("life",), ("you",))

    word: str

    def _holds(self, text: str) -> bool:
        return _ends(text, self.word)


@dataclass(frozen=True)
class Postscript(Constraint):
    """A postscript at the end: a line that begins with P.S. and has no other line after it."""

    kind = "postscript"
    group = "start and end"
    claims = frozenset({"end", "sentences", "shape", "case"})
    phrasings = (
        "Add a postscript at the end that begins with P.S.",
        "At the end of your answer, add a line that begins with P.S.",
        "Close with a postscript, on its own line after P.S.",
    )

    def _holds(self, text: str) -> bool:
        return re.search(r"\S\s*\n\s*\**P\.\s?S\.[^\n]*\w[^\n]*\Z", text) is not None

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return f"{draft}\n\nP.S. {pick(rng, spoken(request, wording(request).postscripts))}"


def _begins(text: str, phrase: str) -> bool:
    return re.match(rf"[\"“*]*{re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def _ends(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}[.!?\"”*)]*\Z", text, re.IGNORECASE) is not None
