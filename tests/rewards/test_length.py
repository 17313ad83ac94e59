"""The reward of a given length, by hand."""

import pytest

from align.rewards import Length
from align.tokenizer import train_tokenizer

WORDS = [" ".join("w" * n) for n in range(13)]


@pytest.mark.parametrize(
    ("reward", "scores"),
    [
        # 4 to 6 words score 1, then a quarter less per word.
        (Length(least=4, most=6, margin=4), [0, 0.25, 0.5, 0.75, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0]),
        (Length(least=4, most=4), [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        (Length(least=2), [0, 0, *[1] * 11]),
        # DAPO with L_max 10 and L_cache 4: (L_max - L_cache - length) / L_cache above 6, here 1 more.
        (Length(most=6, margin=4), [*[1] * 7, 0.75, 0.5, 0.25, 0, 0, 0]),
    ],
)
def test_scores_by_length(reward: Length, scores: list[float]):
    assert reward(["p"] * 13, WORDS) == scores


def test_tokens_of_a_tokenizer(tmp_path):
    """Without merges a byte is a token: the accent has two."""
    train_tokenizer(["ab"], vocab_size=256 + 7).save(tmp_path)
    assert Length(most=4, margin=2, tokenizer=str(tmp_path))(["p"] * 2, ["a b c", "ab\u00e9"]) == [0.5, 1]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "least is 0 and most null"),
        ({"least": -1}, "least is -1"),
        ({"least": 3, "most": 2}, "most is 2, below least, 3"),
        ({"most": 2, "margin": -1}, "margin -1"),
    ],
)
def test_impossible_settings(settings: dict[str, int], named: str):
    with pytest.raises(ValueError, match=named):
        Length(**settings)
