"""Diversity by hand."""

import pytest

from align.compare.diversity import diversity


def test_by_hand() -> None:
    """a b c d e and a b c d f: 6 different of 10 words, 5 of 8 pairs (ab bc cd de df), two different texts.

    BLEU-4 of one against the other, each precision but the first smoothed by one: (4/5 4/5 3/4 2/3)^(1/4).
    """
    found = diversity([["a b c d e", "a b c d f"]])
    assert found[:3] == (0.6, 0.625, 1.0)
    assert found.self_bleu == pytest.approx((4 / 5 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25, abs=1e-3)


def test_answers_that_all_say_the_same() -> None:
    found = diversity([["a b c d e", "a b c d e"], ["a b c d e", "a b c d e"]])
    assert found == (0.25, 0.25, 0.25, pytest.approx(1.0))


def test_one_answer_a_prompt_has_no_self_bleu_and_empty_ones_no_words() -> None:
    assert diversity([["a"], ["b"]]).self_bleu is None
    assert diversity([[""], [""]])[:3] == (0.0, 0.0, 0.5)
