"""Gold rewards derived by hand.

Eight asked parts and the grammar weigh 0.08 each, repetition 0.03, completeness 0.25. Whatever is lost also loses
completeness, so one part at half gives 1 - 0.04 - 0.25 = 0.71 and one part at nothing 1 - 0.08 - 0.25 = 0.67.
"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.sandbox import GoldReward, gold_reward
from align.sandbox.gold import WEIGHTS
from align.sandbox.phrasings import read_prompt, write_prompt, write_title
from align.sandbox.stories import check, tell
from align.sandbox.world import Draft, misunderstand, sample_ingredients

ORDER = (
    "Write a sad story of Mia the fox and an owl at the harbor with a lantern. "
    "Mia sings before she digs. Use five sentences."
)
EXCLUSION = "Put a wolf named Leo and a kite at the mill. Make it happy. Use three sentences. Leave out the drum."
PLAIN = "Put a wolf named Leo and a kite at the mill. Make it happy. Use three sentences."
OPENING = "Mia the fox and an owl found a lantern at the harbor."
EVENTS = "First she sang, then she dug."
FILLER = "The sky was grey. The wind was cold."
CLOSING = "So she went home gloomy."


def test_weights_sum_to_one_and_name_every_part() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)
    assert tuple(WEIGHTS) == GoldReward._fields[1:]


def test_full_marks() -> None:
    assert set(gold_reward(ORDER, f"{OPENING} {FILLER} {EVENTS} {CLOSING}")) == {1.0}
    assert set(gold_reward(EXCLUSION, "Leo the wolf came to the mill. He lost a kite. In the end he was merry.")) == {
        1.0
    }


@pytest.mark.parametrize(
    ("part", "value", "total", "response"),
    [
        ("who", 0.5, 0.71, f"{OPENING.replace('fox', 'bear')} {FILLER} {EVENTS} {CLOSING}"),
        ("who", 0.5, 0.71, f"{OPENING.replace('Mia', 'Ruby')} {FILLER} {EVENTS} {CLOSING}"),
        ("friend", 0.0, 0.67, f"{OPENING.replace(' and an owl', '')} {FILLER} {EVENTS} {CLOSING}"),
        ("friend", 0.0, 0.67, f"{OPENING.replace('an owl', 'a hen')} {FILLER} {EVENTS} {CLOSING}"),
        ("friend", 0.5, 0.71, f"{OPENING} The sky was grey. A hen came along. {EVENTS} {CLOSING}"),
        ("object", 0.0, 0.67, f"{OPENING.replace('lantern', 'kite')} {FILLER} {EVENTS} {CLOSING}"),
        ("place", 0.0, 0.67, f"{OPENING.replace('harbor', 'mill')} {FILLER} {EVENTS} {CLOSING}"),
        ("mood", 0.0, 0.67, f"{OPENING} {FILLER} {EVENTS} Then she went home."),
        ("mood", 0.5, 0.71, f"{OPENING} The sky was grey. She felt glad. {EVENTS} {CLOSING}"),
        ("rule", 0.5, 0.71, f"{OPENING} {FILLER} First she dug, then she sang. {CLOSING}"),
        ("rule", 0.0, 0.67, f"{OPENING} {FILLER} She sang all day. {CLOSING}"),
        ("length", 0.0, 0.67, f"{OPENING} {EVENTS} {CLOSING}"),
        ("length", 0.0, 0.67, f"{OPENING} The sky was grey. She met an owl. She felt sorry. {EVENTS} {CLOSING}"),
        ("ending", 0.0, 0.67, f"{OPENING} {FILLER} {EVENTS} She felt gloomy."),
        ("ending", 0.5, 0.71, f"{OPENING} The sky was grey. That was the end. {EVENTS} {CLOSING}"),
        # Four of five sentences are good: 1 - 0.08 / 5 - 0.25.
        ("grammar", 0.8, 0.734, f"{OPENING} The sky was grey. The grey was sky. {EVENTS} {CLOSING}"),
        ("grammar", 0.8, 0.734, f"{OPENING} The sky was grey. He felt sorry. {EVENTS} {CLOSING}"),
        ("grammar", 0.8, 0.734, f"{OPENING} The sky was grey. Ruby felt sorry. {EVENTS} {CLOSING}"),
        ("grammar", 0.8, 0.734, f"{OPENING} The sky was grey. she felt sorry. {EVENTS} {CLOSING}"),
        # 12 + 4 + 5 + 5 + 5 words make 28 runs of four; the second copy of a sentence of five repeats two of them.
        (
            "repetition",
            26 / 28,
            0.75 - 0.03 * 2 / 28,
            f"{OPENING} The sky was grey. She sang and then dug. She sang and then dug. {CLOSING}",
        ),
    ],
)
def test_one_part_moved(part: str, value: float, total: float, response: str) -> None:
    gold = gold_reward(ORDER, response)
    lost = {name for name in WEIGHTS if getattr(gold, name) < 1}
    assert lost == {part, "complete"}
    assert getattr(gold, part) == pytest.approx(value)
    assert gold.total == pytest.approx(total)


def test_a_prompt_may_ask_for_no_order_and_no_exclusion() -> None:
    answer = "Leo the wolf came to the mill. He lost a kite. In the end he was merry."
    assert set(gold_reward(PLAIN, answer)) == {1.0}
    assert gold_reward(PLAIN, answer.replace("He lost a kite", "He saw a kite and a drum")).rule == 1


@pytest.mark.parametrize(
    ("part", "response"),
    [
        ("rule", "Leo the wolf found a kite at the mill. A drum was there too. In the end he was merry."),
        ("friend", "Leo the wolf found a kite at the mill. A hen came along. In the end he was merry."),
    ],
)
def test_what_must_not_be_there(part: str, response: str) -> None:
    gold = gold_reward(EXCLUSION, response)
    assert getattr(gold, part) == 0
    assert gold.total == pytest.approx(0.67)


def test_a_broken_sentence_is_one_fault_and_still_tells() -> None:
    """'a owl': who, friend, object and place stay told, one of five sentences is broken: 1 - 0.08 / 5 - 0.25."""
    gold = gold_reward(ORDER, f"{OPENING.replace('an owl', 'a owl')} {FILLER} {EVENTS} {CLOSING}")
    assert (gold.who, gold.friend, gold.object, gold.place) == (1, 1, 1, 1)
    assert gold.total == pytest.approx(0.734)


def test_the_pronoun_of_a_hero_in_a_broken_opening_binds() -> None:
    opening = "Mia the fox went the harbor."
    assert check(f"{opening} She felt glad.").good == [False, True]
    assert check(f"{opening} He felt glad.").good == [False, False]


def test_most_sentences_broken_scale_everything_down() -> None:
    """One good sentence of three: every other part holds at two thirds, as 2 * 1/3 is less than 1.

    Eight asked parts and repetition: (8 * 0.08 + 0.03) * 2 / 3; grammar: 0.08 / 3; not complete.
    """
    gold = gold_reward(EXCLUSION, "Leo the wolf came the mill. He lost kite. In the end he was merry.")
    assert {gold.who, gold.friend, gold.object, gold.place, gold.mood, gold.rule, gold.length} == {2 / 3}
    assert gold.total == pytest.approx((8 * 0.08 + 0.03) * 2 / 3 + 0.08 / 3, abs=1e-6)


def test_a_response_cut_short_loses_its_ending() -> None:
    """Without its full stop the last sentence is broken and no closing: 1 - 0.08 - 0.08 / 5 - 0.25."""
    gold = gold_reward(ORDER, f"{OPENING} {FILLER} {EVENTS} So she went home gloomy")
    assert (gold.mood, gold.ending, gold.grammar) == (1, 0, 0.8)
    assert gold.total == pytest.approx(0.654)


@pytest.mark.parametrize("response", ["", "   \n"])
def test_empty_response_earns_nothing(response: str) -> None:
    assert set(gold_reward(EXCLUSION, response)) == {0.0}


def test_naming_the_ingredients_outside_sentences_earns_nothing() -> None:
    """Every asked word, the asked number of full stops, no sentence of the grammar."""
    assert set(gold_reward(EXCLUSION, "Leo the wolf, kite. Mill. Glad went home.")) == {0.0}


@given(st.text(max_size=300), st.sampled_from([ORDER, EXCLUSION]))
def test_any_text_scores_in_range(response: str, prompt: str) -> None:
    assert all(0 <= part <= 1 for part in gold_reward(prompt, response))


@given(st.lists(st.sampled_from(f"{OPENING} {EVENTS} {CLOSING} , . a drum hen Leo he kite".split(" ")), max_size=40))
def test_any_words_of_the_world_score_in_range(tokens: list[str]) -> None:
    assert all(0 <= part <= 1 for part in gold_reward(ORDER, " ".join(tokens)))


@given(st.integers(0, 10**6))
def test_clean_answers_are_perfect_but_for_chance_repetition(seed: int) -> None:
    rng = random.Random(seed)
    asked = sample_ingredients(rng, "train")
    prompt, story = write_prompt(rng, asked), tell(rng, Draft(asked))
    gold = gold_reward(prompt, story)
    assert gold._replace(total=1.0, repetition=1.0, complete=1.0) == GoldReward(*[1.0] * 12), (prompt, story)
    assert gold.repetition > 0.9


@given(st.integers(0, 10**6))
def test_prompts_and_whole_titles_read_back(seed: int) -> None:
    rng = random.Random(seed)
    asked = sample_ingredients(rng, "train")
    assert read_prompt(write_prompt(rng, asked)) == asked
    assert read_prompt(write_title(rng, asked, 0.0)) == asked
    assert read_prompt(f"<|bos|><|user|>{write_prompt(rng, asked)}<|end|><|assistant|>") == asked


@given(st.integers(0, 10**6))
def test_careless_answers_are_still_well_formed(seed: int) -> None:
    rng = random.Random(seed)
    asked = sample_ingredients(rng, "train")
    assert all(check(tell(rng, misunderstand(rng, asked, 0.5))).good)


def test_more_slips_earn_less() -> None:
    means = []
    for rate in (0.0, 0.2, 0.4, 0.8):
        rng = random.Random(1)
        golds = []
        for _ in range(200):
            asked = sample_ingredients(rng, "train")
            golds.append(gold_reward(write_prompt(rng, asked), tell(rng, misunderstand(rng, asked, rate))).total)
        means.append(sum(golds) / len(golds))
    assert means[0] > 0.99
    assert all(more - less > 0.07 for more, less in zip(means, means[1:], strict=False)), means


@pytest.mark.parametrize(
    ("prompt", "missing"),
    [
        ("What is the capital of France?", "hero"),
        ("", "hero"),
        (
            "Write a sad story of Mia the fox at the harbor with a lantern. Mia sings. Five sentences.",
            "events.*exclusion",
        ),
        ("Write a sad story of Mia the fox at the harbor. No drum. Five sentences.", r"object.*\b0\b"),
        (
            "Write a story of Mia the fox at the harbor with a lantern. No drum. Five sentences.",
            r"mood.*\b0\b",
        ),
    ],
)
def test_a_foreign_prompt_is_refused_in_one_line(prompt: str, missing: str) -> None:
    with pytest.raises(ValueError, match=missing) as refused:
        gold_reward(prompt, "Mia the fox went to the harbor.")
    assert "\n" not in str(refused.value)
