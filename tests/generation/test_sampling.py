import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from align.generation.sampling import (
    draw,
    min_p_mask,
    penalise_repetition,
    row_seeds,
    row_uniforms,
    sampling_probs,
    top_k_mask,
    top_p_mask,
)
from align.generation.sampling_config import SamplingConfig

PROBS = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]])


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("temperature", -0.1, "0"),
        ("temperature", math.nan, "0"),
        ("top_k", -1, "0"),
        ("top_p", 0.0, r"\(0, 1\]"),
        ("min_p", 1.5, r"\[0, 1\]"),
        ("repetition_penalty", 0.0, "0"),
        ("max_new_tokens", 0, "1"),
        ("dtype", "float16", "bfloat16"),
    ],
)
def test_an_impossible_setting_is_named_with_its_value_and_the_cure(name, value, right):
    with pytest.raises(ValueError, match=rf"{name}.*{value}\b.*{right}") as error:
        SamplingConfig(**{name: value})
    assert "\n" not in str(error.value)


def test_top_k_keeps_the_largest_and_ties():
    assert top_k_mask(PROBS, 2).tolist() == [[False, True, False, True, False]]
    assert top_k_mask(PROBS, 99).all()
    assert top_k_mask(torch.tensor([[1.0, 2.0, 2.0]]), 1).tolist() == [[False, True, True]]


def test_top_p_keeps_the_fewest_that_reach_it():
    """Sorted: 0.4 0.25 0.2 0.1 0.05, summing to 0.4 0.65 0.85 0.95 1. 0.6 needs two, 0.7 three; tiny p the first."""
    assert top_p_mask(PROBS, 0.6).tolist() == [[False, True, False, True, False]]
    assert top_p_mask(PROBS, 0.7).tolist() == [[False, True, False, True, True]]
    assert top_p_mask(PROBS, 1e-9).tolist() == [[False, True, False, False, False]]


def test_top_p_of_a_flat_distribution_sorts_the_whole_vocabulary():
    """1000 entries falling slowly from 1.5 to 0.5 thousandths: far more than the first 256 entries hold."""
    probs = torch.linspace(1.5, 0.5, 1000, dtype=torch.float64)[None] / 1000
    kept = int(top_p_mask(probs, 0.9).sum())
    assert probs[0, : kept - 1].sum() < 0.9 <= probs[0, :kept].sum()


def test_min_p_keeps_a_share_of_the_best():
    """Half of 0.4 is 0.2; float32 holds 0.2 and 0.5 * 0.4 as the same number."""
    assert min_p_mask(PROBS, 0.5).tolist() == [[False, True, False, True, True]]


def test_temperature_zero_reports_the_plain_softmax():
    logits = torch.tensor([[0.0, math.log(3)]])
    sampling = SamplingConfig(temperature=0, top_k=1)
    torch.testing.assert_close(sampling_probs(logits, sampling), torch.tensor([[0.25, 0.75]]))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 5, 300, 1000]),
    top_p=st.sampled_from([0.2, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_filtered_distributions_equal_transformers(seed, temperature, top_k, top_p, min_p):
    logits = torch.randn(3, 400, generator=torch.Generator().manual_seed(seed)) * 2
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    found = sampling_probs(logits, SamplingConfig(temperature, top_k, top_p, min_p))
    torch.testing.assert_close(found, expected.softmax(-1), rtol=1e-4, atol=1e-6)


def test_repetition_penalty_equals_transformers():
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 3, 3], [8, 1, 2]])
    seen = torch.zeros(2, 9, dtype=torch.bool).scatter(1, ids, True)
    for penalty in (0.8, 1.3):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
        torch.testing.assert_close(penalise_repetition(logits, seen, penalty), expected)


def test_draw_inverts_the_cumulative_distribution_by_hand():
    """Probabilities 0 1/4 0 3/4 0: below 1/4 token 1, from there on token 3, and never one of probability 0."""
    probs = torch.tensor([[0, 0.25, 0, 0.75, 0]]).expand(5, -1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2**-24])
    assert draw(probs, uniforms).tolist() == [1, 1, 3, 3, 3]
    # The scale does not matter, and the largest uniform of float32 stays inside although its product rounds up.
    assert draw(probs * 1e-3, uniforms).tolist() == [1, 1, 3, 3, 3]


def test_draws_follow_the_distribution():
    """200,000 draws: each frequency within 5 standard deviations, sqrt(p (1 - p) / n)."""
    count = 200_000
    probs = torch.randn(7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(1))
    found = draw(probs.expand(count, -1), uniforms).bincount(minlength=7) / count
    assert ((found - probs).abs() < 5 * (probs * (1 - probs) / count).sqrt()).all()


def test_uniforms_belong_to_the_seed_not_to_the_batch():
    alone, together = row_uniforms([7], 20), row_uniforms([5, 7, 6], 30)
    assert torch.equal(alone[0], together[1, :20])
    assert len(set(row_seeds(0, 50)) | set(row_seeds(1, 50))) == 100
    assert row_seeds(0, 3) == row_seeds(0, 50)[:3]
