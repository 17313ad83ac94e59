import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.objectives import explained_variance, masked_whiten

VALUES = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, math.nan]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def on_ranks(function, *parts):
    """Results of ``function(*part, total=...)`` on ranks that run in step, each total the sum over all of them."""
    sums: list[torch.Tensor] = []
    while True:
        heard, results = [], []
        for part in parts:
            asked: list[torch.Tensor] = []

            def total(tensor, asked=asked):
                asked.append(tensor)
                return sums[len(asked) - 1] if len(asked) <= len(sums) else tensor

            results.append(function(*part, total=total))
            heard.append(asked)
        # Each turn learns one more of the sums, which the next depends on.
        if len(sums) == len(heard[0]):
            return results
        sums.append(sum(asked[len(sums)] for asked in heard))


def test_whitening_by_hand():
    """Of 1, 2, 6 the mean is 3, the squared deviations 4 + 1 + 9 = 14, the unbiased variance 7."""
    white = masked_whiten(VALUES, MASK)
    assert white[MASK].tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5])
    assert white[~MASK].tolist() == [0, 0, 0]


def test_what_is_masked_has_no_gradient_even_where_it_is_nan():
    values = VALUES.clone().requires_grad_()
    (masked_whiten(values, MASK) ** 3).sum().backward()
    assert values.grad.isfinite().all()
    assert not values.grad[~MASK].any()


def _trl_masked_whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """TRL's formula (its PPO up to 1.12): sums of products, Bessel's correction, rsqrt(var + 1e-8)."""
    mean = (values * mask).sum() / mask.sum()
    variance = ((values - mean) ** 2 * mask).sum() / mask.sum() * (mask.sum() / (mask.sum() - 1))
    return (values - mean) * torch.rsqrt(variance + 1e-8)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), extra=st.integers(0, 3))
def test_whitening_matches_trl_whatever_the_padding_the_order_and_the_ranks(seed: int, extra: int):
    g = torch.Generator().manual_seed(seed)
    values = 3 + 2 * torch.randn(4, 5, generator=g, dtype=torch.float64)
    mask = torch.rand(4, 5, generator=g) < 0.7
    mask[:2, 0] = True
    got = masked_whiten(values, mask)
    torch.testing.assert_close(got[mask], _trl_masked_whiten(values, mask)[mask])
    padding = torch.full((4, extra), math.nan, dtype=torch.float64)
    nothing = torch.zeros(4, extra, dtype=torch.bool)
    longer = masked_whiten(torch.cat([values, padding], 1), torch.cat([mask, nothing], 1))
    torch.testing.assert_close(longer[:, :5], got)
    order = torch.randperm(4, generator=g)
    torch.testing.assert_close(masked_whiten(values[order], mask[order]), got[order])
    halves = on_ranks(masked_whiten, (values[:3], mask[:3]), (values[3:], mask[3:]))
    torch.testing.assert_close(torch.cat(halves), got)


def test_equal_values_and_a_single_value_whiten_to_zero():
    assert masked_whiten(torch.full((3,), 5.0), torch.tensor([True, True, False])).tolist() == [0, 0, 0]
    assert masked_whiten(torch.tensor([1.0, 5.0, 2.0]), torch.tensor([False, True, False])).tolist() == [0, 0, 0]


def test_a_mask_that_counts_nothing_or_is_not_one_is_an_error():
    with pytest.raises(ValueError, match=r"mask.*\(2, 2\)"):
        masked_whiten(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask.*float32.*\(2, 2\).*bool"):
        masked_whiten(torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"mask.*\(2, 3\).*\(2, 2\)"):
        masked_whiten(torch.ones(2, 2), torch.ones(2, 3, dtype=torch.bool))


def test_explained_variance_by_hand():
    """Returns 0, 2, 4. Exact values explain all, their mean nothing; the reverse errs by -4, 0, 4: 1 - 4 = -3."""
    returns = torch.tensor([[0.0, 2, 4, math.nan]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    got = [
        explained_variance(torch.tensor([[*values, math.nan]], dtype=torch.float64), returns, mask).item()
        for values in ((0.0, 2, 4), (2.0, 2, 2), (7.0, 9, 11), (4.0, 2, 0))
    ]
    assert got == pytest.approx([1, 0, 1, -3])


def test_explained_variance_over_ranks_is_that_of_all_tokens():
    g = torch.Generator().manual_seed(0)
    values, returns = torch.randn(2, 4, 5, generator=g, dtype=torch.float64)
    mask = torch.rand(4, 5, generator=g) > 0.3
    whole = explained_variance(values, returns, mask)
    torch.testing.assert_close(whole, 1 - (returns - values)[mask].var() / returns[mask].var())
    parts = [(values[rows], returns[rows], mask[rows]) for rows in (slice(2), slice(2, 4))]
    for got in on_ranks(explained_variance, *parts):
        torch.testing.assert_close(got, whole)


def test_returns_that_differ_by_rounding_leave_nothing_to_explain():
    g = torch.Generator().manual_seed(0)
    values, mask = torch.randn(4, 5, generator=g), torch.ones(4, 5, dtype=torch.bool)
    equal = torch.full((4, 5), -1.0)
    equal[0, 0] -= 1e-7
    large = 60 * values
    assert equal.unique().numel() == 2
    assert explained_variance(values.double(), equal.double(), mask).item() == 0
    assert explained_variance(large.double(), ((-1.0 - large) + large).double(), mask).item() == 0
