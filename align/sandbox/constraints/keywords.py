"""Constraints on words; their words suit the request, and case does not matter."""

import re
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Self

from align.sandbox.constraints.constraint import Constraint, Request, occurrences
from align.sandbox.constraints.editing import add_clause, append, sentences_by_line, trimmed, without
from align.sandbox.constraints.english import mention
from align.sandbox.world import pick

_INSTEAD: dict[str, tuple[tuple[str, str], ...]] = {
    "and": ((r",\s+and\b", ";"), (r"\band\b", "&")),
    "a": ((r"\ba\b", "the"),),
    "you": ((r"\byou\b", "we"), (r"\byour\b", "our"), (r"\byours\b", "ours"), (r"\byourself\b", "ourselves")),
    "it": ((r"\bit\b", "this"),),
    "is": ((r"\bis\b", "remains"),),
    "with": ((r"\bwith\b", "alongside"),),
}
"""Patterns of a common word, and of what must change along with it, and their replacements"""


@dataclass(frozen=True)
class Include(Constraint):
    """A word occurs."""

    kind = "include"
    group = "keywords"
    claims = frozenset({"keywords"})
    phrasings = (
        'Include the word "{word}".',
        'Your answer must contain the word "{word}".',
        'Make sure to use the word "{word}".',
    )

    word: str

    @classmethod
    def sample(cls, rng: Random, request: Request) -> Self:
        """See ``Constraint``."""
        return cls(pick(rng, request.keywords))

    def _holds(self, text: str) -> bool:
        return occurrences(self.word, text) > 0

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return _woven(draft, request, (self.word,), rng)


@dataclass(frozen=True)
class IncludeBoth(Constraint):
    """Two words occur."""

    kind = "include_both"
    group = "keywords"
    claims = frozenset({"keywords"})
    phrasings = (
        'Include the words "{first}" and "{second}".',
        'Use both of the words "{first}" and "{second}" in your answer.',
        'Your answer must contain "{first}" as well as "{second}".',
    )

    first: str
    second: str

    @classmethod
    def sample(cls, rng: Random, request: Request) -> Self:
        """See ``Constraint``."""
        first = pick(rng, request.keywords)
        return cls(first, pick(rng, tuple(word for word in request.keywords if word != first)))

    def _holds(self, text: str) -> bool:
        return occurrences(self.first, text) > 0 and occurrences(self.second, text) > 0

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return _woven(draft, request, (self.first, self.second), rng)


@dataclass(frozen=True)
class IncludeTimes(Constraint):
    """A word occurs at least ``least`` times."""

    kind = "include_times"
    group = "keywords"
    claims = frozenset({"keywords"})
    phrasings = (
        'Use the word "{word}" at least {least} times.',
        'The word "{word}" must appear {least} times or more.',
        'Repeat the word "{word}" so that it occurs at least {least} times.',
    )

    word: str
    least: int

    @classmethod
    def sample(cls, rng: Random, request: Request) -> Self:
        """See ``Constraint``."""
        return cls(pick(rng, request.keywords), pick(rng, (2, 3)))

    def _holds(self, text: str) -> bool:
        return occurrences(self.word, text) >= self.least


@dataclass(frozen=True)
class Forbid(Constraint):
    """A word that would come to mind never occurs."""

    kind = "forbid"
    group = "keywords"
    claims = frozenset({"keywords"})
    phrasings = (
        'Do not use the word "{word}".',
        'Avoid the word "{word}".',
        'Your answer must not contain the word "{word}".',
    )

    word: str

    @classmethod
    def sample(cls, rng: Random, request: Request) -> Self:
        """See ``Constraint``."""
        return cls(pick(rng, request.keywords))

    def _holds(self, text: str) -> bool:
        return occurrences(self.word, text) == 0

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return _avoided(draft, self.word)


@dataclass(frozen=True)
class ForbidCommon(Constraint):
    """A frequent English word never occurs."""

    kind = "forbid_common"
    group = "keywords"
    claims = frozenset({"common_words"})
    phrasings = (
        'Write without the common word "{word}".',
        'Never use the little word "{word}".',
        'The short word "{word}" is not allowed anywhere.',
    )
    choices = (("and",), ("a",), ("you",), ("it",), ("of",), ("for",), ("is",), ("with",))

    word: str

    def _holds(self, text: str) -> bool:
        return occurrences(self.word, text) == 0

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        text = _avoided(draft, self.word)
        for pattern, instead in _INSTEAD.get(self.word, ()):
            text = re.sub(pattern, partial(_as_written, instead), text, flags=re.IGNORECASE)
        return text


def _woven(text: str, request: str, words: tuple[str, ...], rng: Random) -> str:
    """The text with a sentence, or a clause of its last sentence, for each word that is missing."""
    for word in words:
        if not occurrences(word, text):
            sentence, clause = mention(request, word, rng)
            text = append(text, sentence) if clause is None or rng.random() < 0.5 else add_clause(text, clause)
    return text


def _avoided(text: str, word: str) -> str:
    """The text without the sentences that have the word, or up to the word if all of them have it."""
    parts = sentences_by_line(text)
    bad = [part for part in parts if occurrences(word, part)]
    # Sentences that refer to each other stay together where most of them would go.
    if 2 * len(bad) <= len(parts):
        return without(text, lambda part: occurrences(word, part) > 0)
    return trimmed(text, lambda part: occurrences(word, part) == 0) if word not in _INSTEAD else text


def _as_written(instead: str, found: re.Match[str]) -> str:
    return instead.capitalize() if found[0][0].isupper() else instead
