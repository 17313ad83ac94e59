"""Constraints on words; their words suit the request, and case does not matter."""

from dataclasses import dataclass
from random import Random
from typing import Self

from align.sandbox.constraints.constraint import Constraint, Request, occurrences
from align.sandbox.world import pick


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
