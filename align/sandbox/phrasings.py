"""Prompts, titles and quizzes of the world, and reading the ingredients back from a prompt."""

import re
from random import Random

from align.sandbox import words
from align.sandbox.stories import HERO, hero_phrase, with_article
from align.sandbox.world import Ingredients, pick

PROMPTS = (
    "Write {mood} story of {hero}{friend} at the {place} with {object}.{Rule} {Length}.",
    "Tell {mood} tale of {hero}{friend}, {object} and the {place}. {Length}.{Rule}",
    "{Number} sentences on {hero}{friend}, {object}, the {place} and {mood} day.{Rule}",
    "{Hero}{friend} with {object} at the {place}: make it {feeling}.{Rule} {Length}.",
    "In {number} sentences, tell {mood} story of {hero}{friend}, {object} and the {place}.{Rule}",
    "Put {hero}{friend} and {object} at the {place}. Make it {feeling}. {Length}.{Rule}",
    "Story time: {hero}{friend}, {object}, the {place}.{Rule} {Length}, {feeling}.",
    "Give me {mood} story with {object} at the {place}. {Length}.{Rule} It is about {hero}{friend}.",
)
TITLES = ("{mood} story of {hero}{friend}", "{mood} tale of {hero}{friend}", "{hero}{friend} on {mood} day")
TITLE_CLAUSES = ("at the {place}", "with {object}")
ORDERS = (
    "{name} {first} before {who} {second}",
    "{name} {second} after {who} {first}",
    "{who} {first}, then {second}",
    "first {name} {first}, then {second}",
)
EXCLUSIONS = ("no {excluded}", "leave out the {excluded}", "do not mention the {excluded}")
LENGTHS = ("{number} sentences", "use {number} sentences")
QUIZ_WORDS = 10


def write_prompt(rng: Random, asked: Ingredients) -> str:
    """One of many ways to ask for these ingredients."""
    slots = _slots(rng, asked)
    length = pick(rng, LENGTHS).format_map(slots)
    rule = f" {_capital(slots['rule'])}." if slots["rule"] else ""
    return pick(rng, PROMPTS).format_map(
        slots
        | {"Rule": rule, "Length": _capital(length)}
        | {"Hero": _capital(slots["hero"]), "Number": _capital(slots["number"])}
    )


def write_title(rng: Random, told: Ingredients, drop_rate: float) -> str:
    """The line above stories in raw text; each part but the first is left out with probability ``drop_rate``."""
    slots = _slots(rng, told)
    clauses = [clause for clause in TITLE_CLAUSES if rng.random() >= drop_rate]
    if rng.random() < 0.5:
        clauses.reverse()
    sentences = [", ".join([pick(rng, TITLES), *clauses]), *["{rule}"] * bool(slots["rule"]), "{number} sentences"]
    kept = [sentence.format_map(slots) for sentence in sentences if rng.random() >= drop_rate or "{hero}" in sentence]
    if rng.random() < 0.5:
        kept[1:] = reversed(kept[1:])
    return " ".join(f"{_capital(sentence)}." for sentence in kept)


def write_quiz(rng: Random, told: Ingredients, text: str) -> str:
    """Words of the world, and whether ``text`` contains them: "Mia yes, kite no, harbor yes, ...".

    A name, kind, object or place is contained as its own word, a mood as any of its words, a number as that many
    sentences. Each yes or no follows its word immediately, so that the network must know it there; about half are yes.
    The first word is a name, without the leading space of words within a line.
    """
    there = set(re.findall(r"[A-Za-z]+", text))
    moods = {word: mood for mood, shown in words.MOODS.items() for word in (mood, *shown)}

    def has(word: str) -> bool:
        if word in moods:
            return moods[word] == told.mood
        return words.LENGTHS[word] == told.length if word in words.LENGTHS else word in there

    categories = (words.KINDS, words.OBJECTS, words.PLACES, tuple(moods), tuple(words.LENGTHS), words.NAMES)
    answers: dict[str, bool] = {}
    while len(answers) < QUIZ_WORDS:
        category = pick(rng, categories) if answers else words.NAMES
        yes = rng.random() < 0.5
        fitting = [word for word in category if has(word) == yes]
        if fitting:
            answers.setdefault(pick(rng, fitting), yes)
    return ", ".join(f"{word} {'yes' if yes else 'no'}" for word, yes in answers.items()) + "."


def read_prompt(prompt: str) -> Ingredients:
    """The ingredients that a prompt's own text asks for.

    Raises:
        ValueError: the text is not a prompt of this world; the message names what is missing.
    """
    hero = HERO.search(prompt)
    if hero is None:
        raise ValueError(f"not a sandbox prompt: no hero such as 'Mia the fox' in {prompt[:120]!r}")
    kind = (hero[2] or hero[3]).lower()
    tokens = re.findall(r"[a-z]+", (prompt[: hero.start()] + prompt[hero.end() :]).lower())
    excluded = re.search(rf"\b(?:mention the|leave out the|no) ({'|'.join(words.OBJECTS)})\b", prompt, re.IGNORECASE)
    without = excluded[1].lower() if excluded else None
    events = [token for token in tokens if token in words.EVENTS]
    if len(events) == 2 and "after" in tokens:
        events.reverse()
    if len(events) not in {0, 2} or (events and without):
        raise ValueError(f"not a sandbox prompt: needs two events, one exclusion or neither in {prompt[:120]!r}")

    def only(what: str, known: tuple[str, ...]) -> str:
        found = [token for token in tokens if token in known and token != without]
        if len(found) != 1:
            raise ValueError(f"not a sandbox prompt: needs one {what}, has {len(found)} in {prompt[:120]!r}")
        return found[0]

    friends = [token for token in tokens if token in words.KINDS]
    return Ingredients(
        name=(hero[1] or hero[4]).capitalize(),
        kind=kind,
        friend=friends[0] if friends else None,
        object=only("object", words.OBJECTS),
        place=only("place", words.PLACES),
        mood=only("mood", tuple(words.MOODS)),
        length=words.LENGTHS[only("number of sentences", tuple(words.LENGTHS))],
        events=(events[0], events[1]) if events else None,
        excluded=without,
    )


def _slots(rng: Random, asked: Ingredients) -> dict[str, str]:
    first, second = asked.events or ("", "")
    rule = pick(rng, ORDERS) if asked.events else pick(rng, EXCLUSIONS) if asked.excluded else ""
    return {
        "hero": hero_phrase(rng, asked.name, asked.kind),
        "friend": f" {pick(rng, ('and', 'with'))} {with_article(asked.friend)}" if asked.friend else "",
        "object": with_article(asked.object),
        "place": asked.place,
        "mood": with_article(asked.mood),
        "feeling": asked.mood,
        "number": next(word for word, number in words.LENGTHS.items() if number == asked.length),
        "rule": rule.format(
            name=asked.name,
            who="she" if asked.she else "he",
            first=first,
            second=second,
            excluded=asked.excluded,
        ),
    }


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
