"""The grammar of the world's stories: writing and checking use the same sentence forms.

A story is an opening, middle sentences and a closing. A form is a string with slots; the writer fills the slots, the
checker turns them into alternatives of a regular expression. So every story that the writer can write is well formed,
and nothing else is.
"""

import re
from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from align.sandbox import words
from align.sandbox.world import Draft, pick, pick_other

# What each form tells, and the forms. {who} is the hero's name or pronoun, {them} the pronoun as an object.
OPENINGS = {
    "place": (
        "{hero} {went} to the {place}.",
        "{time}, {hero} {went} to the {place}.",
        "{hero} lived {near} the {place}.",
    ),
    "place friend": (
        "{hero} and {friend} {went} to the {place}.",
        "{time}, {hero} met {friend} {near} the {place}.",
        "{near} the {place}, {hero} met {friend}.",
    ),
    "place object": (
        "{hero} {found} {thing} {near} the {place}.",
        "{time}, {hero} {found} {thing} {near} the {place}.",
        "{near} the {place}, {hero} {found} {thing}.",
    ),
    "place friend object": (
        "{hero} and {friend} {found} {thing} {near} the {place}.",
        "{near} the {place}, {hero} and {friend} {found} {thing}.",
        "{hero} met {friend} with {thing} {near} the {place}.",
    ),
}
MIDDLES = {
    "object": ("{who} {found} {thing}.", "{who} {found} {thing} there.", "there was {thing} {where}."),
    "friend": (
        "{friend} came along.",
        "{who} met {friend}.",
        "soon {friend} joined {them}.",
        "{friend} helped {them}.",
    ),
    "friend object": ("{friend} gave {them} {thing}.", "{who} and {friend} {found} {thing}."),
    "events": (
        "{who} {first} and then {second}.",
        "first {who} {first}, then {who} {second}.",
        "after {who} {first}, {who} {second}.",
        "{who} {first} {how} and later {second}.",
    ),
    "first": ("first {who} {first}.", "{who} {first} {how}.", "at first {who} {first}."),
    "second": ("then {who} {second}.", "later {who} {second} {how}.", "after that {who} {second}."),
    "mood": ("{who} felt {mood}.", "{who} was very {mood}.", "it made {them} feel {mood}.", "{who} looked {mood}."),
    "mention": ("{who} also saw {extra}.", "{where} lay {extra}.", "{extra} was there too."),
    "deed": ("{who} {first} {how}.", "{who} also {first}."),
    "weather": ("the {sky} was {weather}.", "that day the {sky} was {weather}."),
}
CLOSINGS = {
    "": ("then {who} went home.", "so the day ended.", "that was the end.", "{who} never forgot that day."),
    "mood": ("so {who} went home {mood}.", "in the end {who} was {mood}.", "{who} fell asleep {mood}."),
}


class Checked(NamedTuple):
    """A text as the grammar sees it.

    Attributes:
        sentences: the text cut after each full stop, in order.
        good: for each sentence, whether it is well formed where it stands.
        hero: name and kind of the hero that the first sentence introduces, or two Nones.
        closings: for each sentence, whether it is a well-formed closing.
    """

    sentences: list[str]
    good: list[bool]
    hero: tuple[str | None, str | None]
    closings: list[bool]


def with_article(noun: str) -> str:
    """The noun behind a or an, as English asks."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def tell(rng: Random, draft: Draft) -> str:
    """A well-formed story that tells the draft, in one of many ways."""
    asked = draft.ingredients
    opening, middles, closing = _plan(rng, draft)
    extra = draft.mention or pick_other(rng, words.OBJECTS, asked.object, asked.excluded)
    first, second = asked.events or (pick(rng, tuple(words.EVENTS)), "")

    def described(noun: str, adjectives: tuple[str, ...]) -> str:
        return with_article(f"{pick(rng, adjectives)} {noun}" if rng.random() < 0.4 else noun)

    def fill(slot: re.Match[str]) -> str:
        match slot[1]:
            case "hero":
                return hero_phrase(rng, asked.name, asked.kind)
            case "who":
                return asked.name if rng.random() < 0.1 else "she" if asked.she else "he"
            case "them":
                return "her" if asked.she else "him"
            case "friend":
                return described(asked.friend or "", words.FRIEND_ADJECTIVES)
            case "thing":
                return described(asked.object, words.THING_ADJECTIVES)
            case "extra":
                return described(extra, words.THING_ADJECTIVES)
            case "place":
                return asked.place
            case "mood":
                return pick(rng, words.MOODS[asked.mood])
            case "first":
                return words.EVENTS[first]
            case "second":
                return words.EVENTS[second]
        return pick(rng, _FREE_SLOTS[slot[1]])

    forms = [pick(rng, OPENINGS[opening]), *(pick(rng, MIDDLES[told]) for told in middles)]
    if closing is not None:
        forms.append(pick(rng, CLOSINGS[closing]))
    sentences = [_SLOT.sub(fill, form) for form in forms]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def hero_phrase(rng: Random, name: str, kind: str) -> str:
    """The hero with name and kind, as stories and prompts introduce them."""
    return f"{name} the {kind}" if rng.random() < 0.6 else f"{with_article(kind)} named {name}"


def check(text: str) -> Checked:
    """Holds ``text`` against the grammar.

    A sentence is well formed when it has one of the forms (an opening if it is the first, none if it is not) and
    speaks of the hero by the name and the pronoun that the first sentence gave.
    """
    text = text.strip()
    sentences = re.split(r"(?<=[.!?]) ", text) if text else []
    good: list[bool] = []
    closings: list[bool] = []
    name = kind = None
    for number, sentence in enumerate(sentences):
        # A sentence that begins with a name keeps its capital in the forms; every other must have one here.
        lowered = sentence[:1].lower() + sentence[1:] if sentence[:1].isupper() else ""
        told = sentence if _NAME.match(sentence) else lowered
        if number == 0:
            good.append(_OPENING.fullmatch(told) is not None)
            closings.append(False)
            if hero := HERO.search(told):
                name, kind = hero[1] or hero[4], hero[2] or hero[3]
            continue
        agrees = _agrees(told, name)
        closings.append(agrees and _CLOSING.fullmatch(told) is not None)
        good.append(closings[-1] or (agrees and _MIDDLE.fullmatch(told) is not None))
    return Checked(sentences, good, (name, kind), closings)


def _agrees(sentence: str, hero: str | None) -> bool:
    if hero is None:
        return True
    foreign = {"he", "him"} if hero in words.SHE_NAMES else {"she", "her"}
    return not any(word in foreign or (word in words.NAMES and word != hero) for word in re.findall(r"\w+", sentence))


def _plan(rng: Random, draft: Draft) -> tuple[str, list[str], str | None]:
    """Which form tells what: keys of ``OPENINGS``, ``MIDDLES`` and ``CLOSINGS`` for the asked number of sentences."""
    asked = draft.ingredients
    while True:
        early_friend = asked.friend is not None and rng.random() < 0.5
        early_object = rng.random() < 0.5
        opening = "place" + " friend" * early_friend + " object" * early_object
        middles: list[str] = []
        late_friend = asked.friend is not None and not early_friend
        if late_friend and not early_object and rng.random() < 0.5:
            middles.append("friend object")
        else:
            middles += ["friend"] * late_friend + ["object"] * (not early_object)
        if asked.events is not None:
            middles += ["events"] if rng.random() < 0.5 else ["first", "second"]
        closing = None if not draft.ends else "mood" if rng.random() < 0.5 else ""
        middles += ["mood"] * (closing != "mood") + ["mention"] * (draft.mention is not None)
        fillers = ["weather"] + ["deed"] * (asked.events is None) + ["mention"] * (draft.mention is None)
        free = asked.length - 1 - draft.ends - len(middles)
        if 0 <= free <= len(fillers):
            break
    for _ in range(free):
        filler = pick(rng, fillers)
        fillers.remove(filler)
        middles.insert(int(rng.random() * (len(middles) + 1)), filler)
    return opening, middles, closing


_SLOT = re.compile(r"{(\w+)}")
_FREE_SLOTS = {
    "went": words.WENT,
    "found": words.FOUND,
    "near": words.NEAR,
    "time": words.TIMES,
    "how": words.HOW,
    "where": words.WHERE,
    "sky": words.SKY,
    "weather": words.WEATHER,
}


def _any(choices: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(choices)})"


def _noun_phrase(nouns: tuple[str, ...], adjectives: tuple[str, ...]) -> str:
    bare = _any(tuple(with_article(noun) for noun in nouns))
    return f"(?:{bare}|{_any(tuple(with_article(adjective) for adjective in adjectives))} {_any(nouns)})"


_NAMES, _KINDS = "|".join(words.NAMES), "|".join(words.KINDS)
# Groups 1 and 2: name, kind ("Mia the fox"); groups 3 and 4: kind, name ("a fox named Mia").
HERO = re.compile(rf"\b({_NAMES}) the ({_KINDS})\b|\ban? ({_KINDS}) named ({_NAMES})\b", re.IGNORECASE)
_NAME = re.compile(rf"(?:{_NAMES})\b")
_EVENT = _any(tuple(words.EVENTS.values()))
_THING = _noun_phrase(words.OBJECTS, words.THING_ADJECTIVES)
_SLOT_PATTERNS = {
    "hero": f"(?:(?:{_NAMES}) the (?:{_KINDS})|{_any(tuple(with_article(kind) for kind in words.KINDS))} named "
    f"(?:{_NAMES}))",
    "who": f"(?:she|he|{_NAMES})",
    "them": "(?:her|him)",
    "friend": _noun_phrase(words.KINDS, words.FRIEND_ADJECTIVES),
    "thing": _THING,
    "extra": _THING,
    "place": _any(words.PLACES),
    "mood": _any(tuple(word for shown in words.MOODS.values() for word in shown)),
    "first": _EVENT,
    "second": _EVENT,
    **{slot: _any(choices) for slot, choices in _FREE_SLOTS.items()},
}


def _compile(forms: Mapping[str, tuple[str, ...]]) -> re.Pattern[str]:
    patterns = (form.replace(".", r"\.") for told in forms.values() for form in told)
    return re.compile("|".join(_SLOT.sub(lambda slot: _SLOT_PATTERNS[slot[1]], form) for form in patterns))


_OPENING, _MIDDLE, _CLOSING = _compile(OPENINGS), _compile(MIDDLES), _compile(CLOSINGS)
