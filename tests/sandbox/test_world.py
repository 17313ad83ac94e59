"""The world's size, its splits, and that its words mean one thing each."""

import random
import re
from collections import Counter

from align.sandbox import words
from align.sandbox.phrasings import EXCLUSIONS, LENGTHS, ORDERS, PROMPTS, TITLE_CLAUSES, TITLES
from align.sandbox.stories import CLOSINGS, MIDDLES, OPENINGS, check, tell
from align.sandbox.world import Draft, sample_ingredients, split_of

SHOWN = [word for shown in words.MOODS.values() for word in shown]
INGREDIENTS = [
    *(word.lower() for word in words.NAMES),
    *(*words.KINDS, *words.OBJECTS, *words.PLACES, *words.MOODS, *SHOWN),
    *(*words.EVENTS, *words.EVENTS.values(), *words.LENGTHS),
]
COLOUR = [
    *(*words.THING_ADJECTIVES, *words.FRIEND_ADJECTIVES, *words.WENT, *words.FOUND, *words.NEAR),
    *(*words.SKY, *words.WEATHER, *words.TIMES, *words.HOW, *words.WHERE),
]
FORMS = [form for kind in (OPENINGS, MIDDLES, CLOSINGS) for forms in kind.values() for form in forms]
PHRASES = [*PROMPTS, *TITLES, *TITLE_CLAUSES, *ORDERS, *EXCLUSIONS, *LENGTHS]


def plain(texts: list[str]) -> set[str]:
    """The words of texts and forms, without the slots of forms."""
    return {word for text in texts for word in re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", text).lower())}


def test_ingredient_words_mean_one_thing() -> None:
    assert [word for word, times in Counter(INGREDIENTS).items() if times > 1] == []
    assert plain([*COLOUR, *FORMS, *PHRASES]) & set(INGREDIENTS) == set()


def test_at_least_300_words() -> None:
    assert len(set(INGREDIENTS) | plain([*COLOUR, *FORMS])) >= 300


def test_at_least_ten_million_texts() -> None:
    """Openings alone are enough: '{hero} {found} {thing} {near} the {place}.'

    hero: 8 names x 8 kinds x 2 ways = 128; found: 17; thing: 8 objects x (32 adjectives or none) = 264;
    near: 5; place: 8. 128 x 17 x 264 x 5 x 8 = 22,978,560. No word is in two slots and every slot is one word
    or begins with one of its own, so different fillings are different texts.
    """
    heroes = len(words.NAMES) * len(words.KINDS) * 2
    things = len(words.OBJECTS) * (len(words.THING_ADJECTIVES) + 1)
    count = heroes * len(words.FOUND) * things * len(words.NEAR) * len(words.PLACES)
    assert count == 22_978_560
    assert count >= 10**7


def test_stories_hardly_ever_repeat() -> None:
    """Among 10^9 equally likely texts 3,000 draws collide with probability 0.5%; whole stories are far more."""
    rng = random.Random(5)
    stories = {tell(rng, Draft(sample_ingredients(rng, "train"))) for _ in range(3000)}
    assert len(stories) == 3000


def test_every_form_is_told_and_accepted() -> None:
    """Each form appears in clean stories, and the grammar accepts every clean story."""
    rng = random.Random(7)
    patterns = {
        form: re.compile(re.sub(r"{\w+}", r"[\\w ]+", form.replace(".", r"\.")), re.IGNORECASE) for form in FORMS
    }
    untold = set(FORMS)
    for _ in range(1500):
        story = tell(rng, Draft(sample_ingredients(rng, "train")))
        seen = check(story)
        assert all(seen.good), story
        assert sum(seen.closings) == seen.closings[-1] == 1, story
        untold -= {form for form in untold if any(patterns[form].fullmatch(sentence) for sentence in seen.sentences)}
    assert untold == set()


def test_splits_own_about_80_10_10_percent_of_the_combinations() -> None:
    counts = Counter(
        split_of(*combo) for combo in ((k, o, p) for k in words.KINDS for o in words.OBJECTS for p in words.PLACES)
    )
    total = 8 * 8 * 8
    assert sum(counts.values()) == total
    # A byte modulo 10 gives 0 and 1 a share of 26/256 each.
    assert abs(counts["val"] / total - 26 / 256) < 0.04
    assert abs(counts["test"] / total - 26 / 256) < 0.04


def test_samples_stay_in_their_split() -> None:
    rng = random.Random(3)
    for split in ("train", "val", "test"):
        for _ in range(100):
            asked = sample_ingredients(rng, split)
            assert split_of(asked.kind, asked.object, asked.place) == split
            assert asked.events is None or asked.excluded is None
            assert asked.friend != asked.kind
            assert asked.excluded != asked.object


def test_hard_parts_are_asked_for_as_often_as_set() -> None:
    rng = random.Random(6)
    drawn = [sample_ingredients(rng, "train", friend_rate=0.5, rule_rate=1.0) for _ in range(400)]
    assert all((asked.events is None) != (asked.excluded is None) for asked in drawn)
    assert 0.4 < sum(asked.friend is not None for asked in drawn) / 400 < 0.6
    plain = [sample_ingredients(rng, "train", friend_rate=0.0, rule_rate=0.0) for _ in range(50)]
    assert {(asked.friend, asked.events, asked.excluded) for asked in plain} == {(None, None, None)}


def test_all_splits_see_every_word() -> None:
    rng = random.Random(4)
    drawn = [sample_ingredients(rng, "test") for _ in range(2000)]
    assert {asked.kind for asked in drawn} == set(words.KINDS)
    assert {asked.object for asked in drawn} == set(words.OBJECTS)
    assert {asked.place for asked in drawn} == set(words.PLACES)
