"""The ingredients of a story, their splits, and the mistakes that a writer makes with them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, NamedTuple, TypeVar

from align.sandbox import words

T = TypeVar("T")
Split = Literal["train", "val", "test"]

FRIEND_RATE = RULE_RATE = 0.2
"""Shares of prompts with a second character, and with an order of events or an exclusion: the hard parts, which a
network of a million parameters learns last"""


@dataclass(frozen=True)
class Ingredients:
    """The ingredients of one prompt. At most one of ``events`` and ``excluded`` is given."""

    name: str
    """The hero's name, one of ``words.NAMES``."""
    kind: str
    """The hero's kind of animal."""
    friend: str | None
    """The second character's kind, or None for no second character."""
    object: str
    """The thing that the story must have."""
    place: str
    """Where the story happens."""
    mood: str
    """How the hero feels, a key of ``words.MOODS``."""
    length: int
    """Sentences, 3 or 5."""
    events: tuple[str, str] | None
    """Two keys of ``words.EVENTS`` in the order in which they must happen, or None."""
    excluded: str | None
    """An object that the story must not mention, or None."""

    @property
    def she(self) -> bool:
        """Whether the hero is a she."""
        return self.name in words.SHE_NAMES


class Draft(NamedTuple):
    """The plan of a story: the ingredients as understood, and two mistakes beyond the ingredients.

    Attributes:
        ingredients: of the story.
        mention: an object that slips into the story, or None.
        ends: whether the story gets an ending.
    """

    ingredients: Ingredients
    mention: str | None = None
    ends: bool = True


def pick(rng: Random, choices: Sequence[T]) -> T:
    """One of ``choices``, from ``random()`` alone, whose sequence Python keeps between versions."""
    return choices[int(rng.random() * len(choices))]


def pick_other(rng: Random, choices: Sequence[T], *taken: T | None) -> T:
    """One of ``choices`` that is none of ``taken``."""
    return pick(rng, [choice for choice in choices if choice not in taken])


def split_of(kind: str, thing: str, place: str) -> Split:
    """The split that owns every prompt with this hero's kind, object and place.

    A hash of the three words (never Python's own, which changes from process to process) puts a tenth of the
    512 combinations into ``val``, a tenth into ``test`` and the rest into ``train``.
    """
    digit = hashlib.sha256(f"{kind}/{thing}/{place}".encode()).digest()[0] % 10
    return "val" if digit == 0 else "test" if digit == 1 else "train"


def sample_ingredients(
    rng: Random, split: Split, *, friend_rate: float = FRIEND_RATE, rule_rate: float = RULE_RATE
) -> Ingredients:
    """Ingredients drawn uniformly among the combinations that ``split`` owns.

    Args:
        rng: draws them.
        split: whose combinations.
        friend_rate: probability that a second character is asked for.
        rule_rate: probability that an order of events or, as often, an exclusion is asked for.
    """
    while True:
        kind, thing, place = pick(rng, words.KINDS), pick(rng, words.OBJECTS), pick(rng, words.PLACES)
        if split_of(kind, thing, place) == split:
            break
    events, excluded = None, None
    if rng.random() < rule_rate:
        if rng.random() < 0.5:
            first = pick(rng, tuple(words.EVENTS))
            events = (first, pick_other(rng, tuple(words.EVENTS), first))
        else:
            excluded = pick_other(rng, words.OBJECTS, thing)
    return Ingredients(
        name=pick(rng, words.NAMES),
        kind=kind,
        friend=pick_other(rng, words.KINDS, kind) if rng.random() < friend_rate else None,
        object=thing,
        place=place,
        mood=pick(rng, tuple(words.MOODS)),
        length=pick(rng, tuple(words.LENGTHS.values())),
        events=events,
        excluded=excluded,
    )


def misunderstand(rng: Random, asked: Ingredients, rate: float) -> Draft:
    """The draft of a careless writer: each thing asked for goes wrong on its own with probability ``rate``.

    Repetition and broken sentences are left out on purpose: a reward model that learns from such drafts never sees
    them and is blind to them, as reward models are to what their data lacks.
    """

    def slips() -> bool:
        return rng.random() < rate

    wrong = asked
    if slips():
        if rng.random() < 1 / 3:
            # Of the same sex: small models mix the pronouns of the asked and the told name, which breaks sentences.
            same = words.SHE_NAMES if asked.she else words.HE_NAMES
            wrong = replace(wrong, name=pick_other(rng, same, asked.name))
        else:
            wrong = replace(wrong, kind=pick_other(rng, words.KINDS, asked.kind, asked.friend))
    if asked.friend is not None and slips():
        drop = rng.random() < 0.5
        wrong = replace(wrong, friend=None if drop else pick_other(rng, words.KINDS, wrong.kind, asked.friend))
    if slips():
        wrong = replace(wrong, object=pick_other(rng, words.OBJECTS, asked.object, asked.excluded))
    if slips():
        wrong = replace(wrong, place=pick_other(rng, words.PLACES, asked.place))
    if slips():
        wrong = replace(wrong, mood=pick_other(rng, tuple(words.MOODS), asked.mood))
    if slips():
        wrong = replace(wrong, length=pick_other(rng, tuple(words.LENGTHS.values()), asked.length))
    mention = None
    if (asked.events or asked.excluded) and slips():
        if asked.events is None:
            mention = asked.excluded
        elif rng.random() < 0.5:
            wrong = replace(wrong, events=(asked.events[1], asked.events[0]))
        else:
            wrong = replace(wrong, events=(asked.events[0], pick_other(rng, tuple(words.EVENTS), *asked.events)))
    return Draft(wrong, mention, ends=not slips())
