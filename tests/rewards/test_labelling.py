"""Which responses are compared, and how the coin falls: against numbers worked out by hand and against the formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from naming import naming

from align.rewards.labelling import LabelConfig, ScoredResponse, Tally, best_response, label_pairs


def responses(*scores: float, texts: str = "abcdefghij") -> list[ScoredResponse]:
    return [ScoredResponse(text, 3, True, score) for text, score in zip(texts, scores, strict=False)]


def test_noiseless_labels_are_all_ordered_pairs():
    """Scores 1, 3, 2, 3: six pairs, of which b and d tie; five are left, each the higher above the lower."""
    tally = Tally()
    pairs = label_pairs(0, responses(1, 3, 2, 3), LabelConfig(), tally)
    assert {(chosen.text, rejected.text) for chosen, rejected in pairs} == {
        ("b", "a"), ("c", "a"), ("d", "a"), ("b", "c"), ("d", "c")
    }  # fmt: skip
    assert (tally.records, tally.untied, tally.agreeing, tally.ties) == (5, 5, 5, 1)
    assert tally.summary(best_of=False)["label_agreement"] == 1.0
    # Chosen 3, 2, 3, 3, 3 and rejected 1, 1, 1, 2, 2.
    assert tally.summary(best_of=False)["mean_score"] == {"responses": 2.25, "chosen": 2.8, "rejected": 1.4}


@pytest.mark.parametrize(("gap", "temperature"), [(0.04, 0.04), (0.1, 0.04), (-0.03, 0.1), (0.0, 1.0)])
def test_the_coin_is_bradley_and_terrys(gap: float, temperature: float):
    """Share of 4,000 prompts whose first response is chosen, within 4 standard errors of sigmoid(gap / temperature)."""
    config, count = LabelConfig(label_temperature=temperature), 4000
    first = [label_pairs(n, responses(1 + gap, 1.0), config, Tally())[0][0].text == "a" for n in range(count)]
    expected = 1 / (1 + math.exp(-gap / temperature))
    assert sum(first) / count == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / count))


def test_a_huge_gap_does_not_overflow():
    assert label_pairs(0, responses(-1e6, 1e6), LabelConfig(label_temperature=1e-6), Tally())[0][0].text == "b"


def test_identical_responses_are_never_a_pair():
    """a, b, a, b, a hold one pair and three repetitions."""
    tally = Tally()
    config = LabelConfig(label_temperature=1.0)
    assert len(label_pairs(0, responses(1, 2, 1, 2, 1, texts="ababa"), config, tally)) == 1
    assert tally.responses_identical == 3
    assert label_pairs(1, responses(1, 1, texts="aa"), config, tally) == []
    assert (tally.prompts, tally.prompts_all_equal, tally.responses_identical) == (2, 1, 4)


def test_what_was_cut_or_says_nothing_is_left_out_and_counted():
    cut = [ScoredResponse("a", 9, False, 5.0), ScoredResponse("b", 3, True, 1.0), ScoredResponse(" ", 1, True, 0.0)]
    tally = Tally()
    assert label_pairs(0, cut, LabelConfig(), tally) == []
    assert (tally.responses, tally.responses_unfinished, tally.responses_empty, tally.prompts_too_few) == (3, 1, 1, 1)
    ((chosen, rejected),) = label_pairs(0, cut, LabelConfig(keep_unfinished=True), Tally())
    assert (chosen.text, rejected.text) == ("a", "b")
    assert best_response(cut, LabelConfig(), Tally()) == cut[1]
    assert best_response(cut, LabelConfig(keep_unfinished=True), Tally()) == cut[0]


def test_the_best_is_the_first_of_the_highest():
    tally = Tally()
    assert best_response(responses(1, 3, 3), LabelConfig(), tally).text == "b"
    assert best_response([], LabelConfig(), tally) is None
    summary = tally.summary(best_of=True)
    assert summary["mean_score"] == {"responses": round(7 / 3, 6), "best": 3.0}
    assert "ties" not in summary["counts"]
    assert (summary["counts"]["prompts"], summary["counts"]["prompts_too_long"]) == (2, 1)


@given(
    scores=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=7),
    number=st.integers(0, 50),
    most=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 0.3]),
)
def test_fewer_pairs_are_a_part_of_more_and_labels_do_not_change(scores, number, most, temperature):
    """Everything random is a function of (seed, prompt number): the first ``most`` of all pairs, labelled alike."""
    some, every = (LabelConfig(label_temperature=temperature, pairs_per_prompt=limit, seed=3) for limit in (most, 1000))
    tally = Tally()
    pairs = label_pairs(number, responses(*scores), every, tally)
    assert label_pairs(number, responses(*scores), some, Tally()) == pairs[:most]
    assert len({frozenset((a.text, b.text)) for a, b in pairs}) == len(pairs) == tally.records
    assert all(a.text != b.text for a, b in pairs)
    total = math.comb(len(scores), 2) if len(scores) > 1 else 0
    assert len(pairs) == total - (tally.ties if temperature == 0 else 0)
    assert tally.untied + (tally.ties if temperature else 0) == len(pairs)


def test_the_seed_and_the_prompt_number_decide_which_pairs_are_taken():
    def taken(seed: int, number: int) -> list[tuple[str, str]]:
        config = LabelConfig(pairs_per_prompt=4, seed=seed)
        return [(a.text, b.text) for a, b in label_pairs(number, responses(*range(10)), config, Tally())]

    assert taken(0, 0) == taken(0, 0)
    assert len({tuple(taken(seed, number)) for seed in range(5) for number in range(5)}) == 25


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_temperature", -0.1),
        ("label_temperature", math.inf),
        ("flip_rate", -0.1),
        ("flip_rate", 0.5),
        ("pairs_per_prompt", 0),
    ],
)
def test_impossible_settings_are_named(name: str, value: float):
    with pytest.raises(ValueError, match=naming(name, value)):
        LabelConfig(**{name: value})


def test_labels_flip_at_the_stated_rate_whatever_the_gap():
    """Share of 4,000 prompts whose label is flipped, within 4 standard errors of 0.2; ties stay out."""
    config, count = LabelConfig(flip_rate=0.2), 4000
    tally = Tally()
    flipped = 0
    for number in range(count):
        [(chosen, rejected)] = label_pairs(number, responses(0.4, 0.5 if number % 2 else 1.0), config, tally)
        flipped += chosen.score < rejected.score
    assert abs(flipped / count - 0.2) < 4 * math.sqrt(0.2 * 0.8 / count)
    assert tally.agreeing == count - flipped
    assert label_pairs(0, responses(1.0, 1.0), config, tally) == []
    assert tally.ties == 1


def test_two_kinds_of_noise_are_refused():
    with pytest.raises(ValueError, match=naming("flip_rate", 0.1, "label_temperature", 0.3)):
        LabelConfig(flip_rate=0.1, label_temperature=0.3)


def test_a_best_response_below_the_least_score_is_left_out():
    config, tally = LabelConfig(least_score=1.0), Tally()
    assert best_response(responses(0.0, 0.5), config, tally) is None
    assert best_response(responses(0.5, 1.0), config, tally).text == "b"
    counts = tally.summary(best_of=True)["counts"]
    assert (counts["prompts"], counts["prompts_too_low"], counts["records"]) == (2, 1, 1)
