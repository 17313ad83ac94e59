import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.objectives import masked_mean, masked_sum, masked_var, masked_whiten

VALUES = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, math.nan]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_by_hand():
    """Of 1, 2, 6 the sum is 9, the mean 3, the squared deviations 4 + 1 + 9 = 14, the unbiased variance 7."""
    assert masked_sum(VALUES, MASK).item() == 9
    assert masked_mean(VALUES, MASK).item() == 3
    assert masked_var(VALUES, MASK).item() == 7
    assert masked_sum(VALUES, MASK, 1).tolist() == [3, 6]
    assert masked_mean(VALUES, MASK, 1).tolist() == [1.5, 6]
    white = masked_whiten(VALUES, MASK)
    assert white[MASK].tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5])
    assert white[~MASK].tolist() == [0, 0, 0]
    kept = masked_whiten(VALUES, MASK, shift_mean=False)
    assert kept[MASK].tolist() == pytest.approx([3 - 2 / 7**0.5, 3 - 1 / 7**0.5, 3 + 3 / 7**0.5])


def test_what_is_masked_has_no_gradient_even_where_it_is_nan():
    values = VALUES.clone().requires_grad_()
    masked_mean(values, MASK).backward()
    assert values.grad.tolist() == [pytest.approx([1 / 3, 1 / 3, 0]), pytest.approx([1 / 3, 0, 0])]
    values.grad = None
    (masked_whiten(values, MASK) ** 3).sum().backward()
    assert values.grad.isfinite().all()
    assert not values.grad[~MASK].any()


def _trl_masked_whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool) -> torch.Tensor:
    """TRL's formula (its PPO up to 1.12): sums of products, Bessel's correction, rsqrt(var + 1e-8)."""
    mean = (values * mask).sum() / mask.sum()
    variance = ((values - mean) ** 2 * mask).sum() / mask.sum() * (mask.sum() / (mask.sum() - 1))
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return whitened if shift_mean else whitened + mean


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), shift_mean=st.booleans(), extra=st.integers(0, 3))
def test_whitening_matches_trl_whatever_the_padding_and_the_order(seed: int, shift_mean: bool, extra: int):
    g = torch.Generator().manual_seed(seed)
    values = 3 + 2 * torch.randn(4, 5, generator=g, dtype=torch.float64)
    mask = torch.rand(4, 5, generator=g) < 0.7
    mask[:2, 0] = True
    got = masked_whiten(values, mask, shift_mean=shift_mean)
    torch.testing.assert_close(got[mask], _trl_masked_whiten(values, mask, shift_mean)[mask])
    assert masked_var(values, mask).item() == pytest.approx(values[mask].var().item())
    padding = torch.full((4, extra), math.nan, dtype=torch.float64)
    nothing = torch.zeros(4, extra, dtype=torch.bool)
    longer = masked_whiten(torch.cat([values, padding], 1), torch.cat([mask, nothing], 1), shift_mean=shift_mean)
    torch.testing.assert_close(longer[:, :5], got)
    order = torch.randperm(4, generator=g)
    torch.testing.assert_close(masked_whiten(values[order], mask[order], shift_mean=shift_mean), got[order])


def test_equal_values_and_a_single_value_whiten_to_zero():
    assert masked_whiten(torch.full((3,), 5.0), torch.tensor([True, True, False])).tolist() == [0, 0, 0]
    single = torch.tensor([False, True, False])
    assert masked_var(torch.tensor([1.0, 5.0, 2.0]), single).item() == 0
    assert masked_whiten(torch.tensor([1.0, 5.0, 2.0]), single).tolist() == [0, 0, 0]


@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_var, masked_whiten])
def test_an_empty_mask_is_an_error(function):
    with pytest.raises(ValueError, match=r"mask.*\(2, 2\)"):
        function(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask.*float32.*\(2, 2\).*bool"):
        function(torch.ones(2, 2), torch.ones(2, 2))


def test_an_empty_row_has_a_sum_but_no_mean():
    mask = torch.tensor([[True, True], [False, False]])
    assert masked_sum(torch.ones(2, 2), mask, 1).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"mask.*\(2, 2\)"):
        masked_mean(torch.ones(2, 2), mask, 1)
