"""Every kind of constraint by name, and the kinds that training never sees."""

from collections.abc import Mapping
from typing import Any

from align.sandbox.constraints.case import CapitalWords, Lowercase, Uppercase
from align.sandbox.constraints.constraint import Constraint
from align.sandbox.constraints.edges import BeginsWith, EndsWith, FirstWord, LastWord, Postscript
from align.sandbox.constraints.keywords import Forbid, ForbidCommon, Include, IncludeBoth, IncludeTimes
from align.sandbox.constraints.layout import (
    Bullets,
    Heading,
    Highlights,
    JSONObject,
    NumberedList,
    Placeholders,
    Quoted,
    Title,
)
from align.sandbox.constraints.length import (
    Lines,
    OneSentence,
    Paragraphs,
    Sentences,
    SentencesAtMost,
    WordsAtLeast,
    WordsAtMost,
    WordsBetween,
)
from align.sandbox.constraints.marks import (
    EndsWithExclamation,
    EndsWithQuestion,
    Exclamations,
    LetterAtLeast,
    LetterAtMost,
    NoCommas,
    NumbersAtLeast,
    Parentheses,
)
from align.sandbox.constraints.whole import RepeatRequest, TwoAnswers

TRAINED: tuple[type[Constraint], ...] = (
    WordsAtMost,
    WordsAtLeast,
    WordsBetween,
    OneSentence,
    Sentences,
    Paragraphs,
    Lines,
    Bullets,
    NumberedList,
    Title,
    Heading,
    JSONObject,
    Quoted,
    Highlights,
    Lowercase,
    Uppercase,
    Include,
    IncludeBoth,
    Forbid,
    ForbidCommon,
    FirstWord,
    EndsWith,
    Postscript,
    EndsWithQuestion,
    EndsWithExclamation,
    Exclamations,
    Parentheses,
    LetterAtMost,
    NumbersAtLeast,
    RepeatRequest,
    TwoAnswers,
)
"""Kinds of every split"""

HELD_OUT: tuple[type[Constraint], ...] = (
    SentencesAtMost,
    Placeholders,
    CapitalWords,
    IncludeTimes,
    BeginsWith,
    LastWord,
    NoCommas,
    LetterAtLeast,
)
"""Kinds that occur in ``prompts_heldout_kinds.jsonl`` alone"""

KINDS: dict[str, type[Constraint]] = {kind.kind: kind for kind in TRAINED + HELD_OUT}
"""Every kind by its name"""


def from_record(record: Mapping[str, Any]) -> Constraint:
    """The constraint of an element of a record's ``constraints``.

    Args:
        record: ``kind`` and the kind's settings.

    Raises:
        ValueError: there is no such kind, or its settings are other ones.
    """
    settings = dict(record)
    name = settings.pop("kind", None)
    if name not in KINDS:
        raise ValueError(f"constraints: no kind {name!r}; known: {', '.join(KINDS)}")
    try:
        return KINDS[name](**settings)
    except TypeError as error:
        raise ValueError(f"constraints: {name} with {settings}: {error}") from None
