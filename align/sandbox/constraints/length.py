"""Constraints on length: words, sentences, paragraphs, lines."""

import re
from dataclasses import dataclass
from random import Random

from align.sandbox.constraints.constraint import Constraint, lines, number_of_words, sentences
from align.sandbox.constraints.editing import (
    SHORTEST,
    extended,
    flat,
    grouped,
    sentences_of,
    split_head,
    split_sentences,
    trimmed,
)
from align.sandbox.world import pick

_ROOM = (0, 0, 8)
"""Words that an edit may leave for what another constraint adds"""


@dataclass(frozen=True)
class WordsAtMost(Constraint):
    """At most ``most`` words."""

    kind = "words_at_most"
    group = "length"
    claims = frozenset({"words"})
    phrasings = (
        "Use at most {most} words.",
        "Your answer must not be longer than {most} words.",
        "Stay within {most} words.",
        "Keep it to {most} words or fewer.",
    )
    choices = ((15,), (20,), (25,), (30,), (40,), (50,))

    most: int

    def _holds(self, text: str) -> bool:
        return number_of_words(text) <= self.most

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        room = pick(rng, _ROOM)
        text = trimmed(draft, lambda text: number_of_words(text) <= self.most - room)
        return text if self._holds(text) else trimmed(draft, self._holds)


@dataclass(frozen=True)
class WordsAtLeast(Constraint):
    """At least ``least`` words."""

    kind = "words_at_least"
    group = "length"
    claims = frozenset({"words"})
    phrasings = (
        "Use at least {least} words.",
        "Your answer must have {least} words or more.",
        "Write no fewer than {least} words.",
    )
    choices = ((30,), (35,), (40,), (45,))

    least: int

    def _holds(self, text: str) -> bool:
        return number_of_words(text) >= self.least

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return extended(draft, request, rng, until=self._holds)


@dataclass(frozen=True)
class WordsBetween(Constraint):
    """From ``least`` to ``most`` words."""

    kind = "words_between"
    group = "length"
    claims = frozenset({"words"})
    phrasings = (
        "Use between {least} and {most} words.",
        "Your answer must have {least} to {most} words.",
        "Aim for a length of {least} to {most} words.",
    )
    choices = ((10, 20), (15, 30), (20, 40), (25, 45))

    least: int
    most: int

    def _holds(self, text: str) -> bool:
        return self.least <= number_of_words(text) <= self.most

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return trimmed(
            extended(draft, request, rng, until=lambda text: number_of_words(text) >= self.least), self._holds
        )


@dataclass(frozen=True)
class OneSentence(Constraint):
    """A single sentence."""

    kind = "one_sentence"
    group = "length"
    claims = frozenset({"sentences", "shape"})
    phrasings = (
        "Answer in a single sentence.",
        "Your answer must be exactly one sentence.",
        "Put everything into one sentence.",
    )

    def _holds(self, text: str) -> bool:
        return len(sentences(text)) == 1

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        whole = [part for part in split_sentences(flat(draft)) if number_of_words(part) >= SHORTEST]
        return whole[0] if whole else draft


@dataclass(frozen=True)
class Sentences(Constraint):
    """Exactly ``count`` sentences."""

    kind = "sentences"
    group = "length"
    claims = frozenset({"sentences", "shape"})
    phrasings = (
        "Answer in exactly {count} sentences.",
        "Write {count} sentences, no more and no fewer.",
        "Your answer must have exactly {count} sentences.",
    )
    choices = ((2,), (3,), (4,))

    count: int

    def _holds(self, text: str) -> bool:
        return len(sentences(text)) == self.count

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        parts = sentences_of(draft, self.count, request, rng)
        # A draft may end with what another constraint asks for.
        first = self.count - int(rng.random() * 2)
        return " ".join([*parts[:first], *parts[len(parts) - (self.count - first) :]])


@dataclass(frozen=True)
class SentencesAtMost(Constraint):
    """At most ``most`` sentences."""

    kind = "sentences_at_most"
    group = "length"
    claims = frozenset({"sentences", "shape"})
    phrasings = (
        "Use at most {most} sentences.",
        "Your answer must not have more than {most} sentences.",
        "Keep it to {most} sentences or fewer.",
    )
    choices = ((2,), (3,), (4,))

    most: int

    def _holds(self, text: str) -> bool:
        return len(sentences(text)) <= self.most


@dataclass(frozen=True)
class Paragraphs(Constraint):
    """Exactly ``count`` paragraphs."""

    kind = "paragraphs"
    group = "length"
    claims = frozenset({"shape"})
    phrasings = (
        "Write exactly {count} paragraphs, with a blank line between them.",
        "Your answer must have {count} paragraphs, separated by blank lines.",
        "Divide your answer into {count} paragraphs and leave a blank line after each.",
    )
    choices = ((2,), (3,))

    count: int

    def _holds(self, text: str) -> bool:
        return len([part for part in re.split(r"\n\s*\n", text) if part.strip()]) == self.count

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        head, body = split_head(draft)
        return head + grouped(body, self.count, "\n\n", request, rng)


@dataclass(frozen=True)
class Lines(Constraint):
    """Exactly ``count`` lines that are not blank."""

    kind = "lines"
    group = "length"
    claims = frozenset({"shape"})
    phrasings = (
        "Write exactly {count} lines.",
        "Your answer must have {count} lines, no more and no fewer.",
        "Spread your answer over exactly {count} lines.",
    )
    choices = ((3,), (4,), (5,))

    count: int

    def _holds(self, text: str) -> bool:
        return len(lines(text)) == self.count

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        head, body = split_head(draft)
        return head.rstrip("\n") + "\n" * bool(head) + grouped(body, self.count - bool(head), "\n", request, rng)
