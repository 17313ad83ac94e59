"""What every constraint has: phrasings that state it, and a strict check of a response."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from random import Random
from typing import Any, ClassVar, NamedTuple, Self

from align.sandbox.world import pick

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
"""How small numbers are written in prompts; larger ones are written in digits."""
_SLOT = re.compile(r"\{(\w+)\}")


class Request(NamedTuple):
    """A request to which constraints are added.

    Attributes:
        text: the instruction.
        keywords: words that a response to it may well contain.
    """

    text: str
    keywords: tuple[str, ...]


@dataclass(frozen=True)
class Constraint(ABC):
    """A property of a response that its text alone decides. The fields of a kind are its settings.

    Attributes:
        kind: name of the kind in records and tables.
        group: kinds of one group look at the same side of a response.
        claims: what the constraint decides about a response; two constraints are compatible if they share no claim.
        phrasings: complete sentences that state the constraint, with a slot per setting.
        choices: tuples of settings to sample from; unused where ``sample`` needs the request.
    """

    kind: ClassVar[str]
    group: ClassVar[str]
    claims: ClassVar[frozenset[str]]
    phrasings: ClassVar[tuple[str, ...]]
    choices: ClassVar[tuple[tuple[Any, ...], ...]] = ((),)

    def describe(self) -> tuple[str, ...]:
        """Every phrasing, with the settings filled in."""
        settings = {
            name: NUMBER_WORDS[value] if isinstance(value, int) and value < len(NUMBER_WORDS) else value
            for name, value in asdict(self).items()
        }
        return tuple(phrasing.format_map(settings) for phrasing in self.phrasings)

    def check(self, response: str) -> bool:
        """Whether a response satisfies the constraint; white space around it is ignored, and nothing earns nothing."""
        text = response.strip()
        return bool(text) and self._holds(text)

    @abstractmethod
    def _holds(self, text: str) -> bool:
        """Whether a text that is neither empty nor surrounded by white space satisfies the constraint."""

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """A draft changed so that it satisfies the constraint, by the smallest natural edit, if there is one.

        Args:
            draft: a response in whole sentences that does not satisfy it.
            request: the instruction that it responds to.
            rng: chooses among several edits.
        """
        return draft

    @classmethod
    def sample(cls, rng: Random, request: Request) -> Self:
        """A constraint of this kind that suits a request."""
        return cls(*pick(rng, cls.choices))

    def record(self) -> dict[str, Any]:
        """``kind`` and the settings, ready for JSON."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    @cache
    def patterns(cls) -> tuple[re.Pattern[str], ...]:
        """One pattern per phrasing, with a group per setting that it states."""
        return tuple(re.compile(_SLOT.sub(cls._slot, _escaped(phrasing))) for phrasing in cls.phrasings)

    @classmethod
    def read(cls, found: re.Match[str]) -> Self:
        """The constraint that a match of one of ``patterns`` states."""
        stated = found.groupdict()
        return cls(
            **{
                field.name: _number(stated[field.name]) if field.type is int else stated[field.name]
                for field in fields(cls)
            }
        )

    @classmethod
    def _slot(cls, slot: re.Match[str]) -> str:
        kinds = {field.name: field.type for field in fields(cls)}
        form = rf"\d+|{'|'.join(NUMBER_WORDS)}" if kinds[slot[1]] is int else r'[^"]+'
        return f"(?P<{slot[1]}>{form})"


def compatible(constraints: Sequence[Constraint | type[Constraint]]) -> bool:
    """Whether a response can satisfy all of the constraints: no two of them share a claim."""
    claims = [claim for constraint in constraints for claim in constraint.claims]
    return len(claims) == len(set(claims))


def word_set(text: str) -> frozenset[str]:
    """The words between white space."""
    return frozenset(text.split())


def number_of_words(text: str) -> int:
    """Words are separated by white space; a lone bullet or other mark is none."""
    return sum(any(map(str.isalnum, token)) for token in text.split())


def sentences(text: str) -> list[str]:
    """Runs of text up to a ``.``, ``!`` or ``?`` before white space or the end; runs without a letter don't count."""
    parts = re.split(r"(?<=[.!?])[\"')\]*_]*(?:\s+|$)", text)
    return [part for part in parts if any(map(str.isalpha, part))]


def lines(text: str) -> list[str]:
    """Lines that are not blank, without white space around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def occurrences(phrase: str, text: str) -> int:
    """How often a word or phrase occurs as whole words, whatever the case."""
    return len(re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE))


def _escaped(phrasing: str) -> str:
    """A pattern of the phrasing in which only the slots are left to fill in."""
    parts = re.split(r"(\{\w+\})", phrasing)
    return "".join(part if _SLOT.fullmatch(part) else re.escape(part.format()) for part in parts)


def _number(text: str) -> int:
    return NUMBER_WORDS.index(text) if text in NUMBER_WORDS else int(text)
