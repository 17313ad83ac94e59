import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import naming

from align.objectives import ppo_policy_loss, ppo_value_loss, truncated_importance_weights


def test_policy_loss_by_hand():
    """Ratios 2, 2, 1/2, 1/2 with advantages 1, -1, 1, -1 at clip 0.2, and one token of padding.

    Losses: -1.2 (clipped), 2, -0.5, 0.8 (clipped): sum 1.1. Mean k3: (2 (1 - ln 2) + 2 (ln 2 - 1/2)) / 4 = 1/4.
    """
    logprobs = torch.tensor([[2, 2, 0.5, 0.5, 1]]).log()
    logprobs[0, 4] = math.nan
    advantages = torch.tensor([[1, -1, 1, -1, math.inf]])
    mask = torch.tensor([[True, True, True, True, False]])
    got = ppo_policy_loss(logprobs, torch.zeros(1, 5), advantages, mask)
    assert got.loss.item() == pytest.approx(1.1)
    assert got.clip_fraction.item() == 0.5
    assert got.approx_kl.item() == pytest.approx(0.25)
    assert got.ratio_max.item() == pytest.approx(2)
    assert got.tokens.item() == 4


def test_importance_weights_by_hand():
    """Probabilities 0.6 / 0.3, 0.1 / 0.4, 0.9 / 0.1 and padding: 2, 1/4, 9 truncated to 3, and 1."""
    trainer, sampler = torch.tensor([[0.6, 0.1, 0.9, 1]]).log(), torch.tensor([[0.3, 0.4, 0.1, 1]]).log()
    assert truncated_importance_weights(trainer, sampler, cap=3.0)[0].tolist() == pytest.approx([2, 0.25, 3, 1])
    with pytest.raises(ValueError, match=naming("cap", 0.5)):
        truncated_importance_weights(trainer, sampler, cap=0.5)


def test_policy_gradient_vanishes_only_where_the_clip_agrees_with_the_advantage():
    """d loss / d logprob = -ratio * advantage where it is not clipped."""
    logprobs = torch.tensor([[2, 2, 0.5, 0.5, 1.1]]).log().requires_grad_()
    advantages = torch.tensor([[1.0, -1, 1, -1, 3]])
    ppo_policy_loss(logprobs, torch.zeros(1, 5), advantages, torch.ones(1, 5, dtype=torch.bool)).loss.backward()
    assert logprobs.grad[0].tolist() == pytest.approx([0, 2, -0.5, 0, -3.3])


def test_first_minibatch_is_the_policy_gradient():
    """Ratio 1: nothing clipped, KL 0, and the gradient is minus the advantage."""
    logprobs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    advantages = torch.arange(12.0).view(3, 4) - 6
    got = ppo_policy_loss(logprobs, logprobs.detach(), advantages, torch.ones(3, 4, dtype=torch.bool))
    got.loss.backward()
    assert (got.clip_fraction.item(), got.approx_kl.item(), got.ratio_max.item()) == (0, 0, 1)
    assert torch.equal(logprobs.grad, -advantages)


def _batch(seed: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    tensors = 0.4 * torch.randn(3, 4, 6, generator=g, dtype=torch.float64)
    mask = torch.arange(6) < torch.randint(7, (4, 1), generator=g)
    return *tensors, mask


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), clip=st.sampled_from([0.1, 0.2, 0.5]))
def test_policy_loss_equals_the_case_by_case_definition(seed: int, clip: float):
    """Schulman et al., section 3: with A > 0 the ratio counts up to 1 + clip, with A < 0 down to 1 - clip."""
    new, old, advantages, mask = _batch(seed)
    got = ppo_policy_loss(new, old, advantages, mask, clip=clip)
    total, clipped, kl, largest = 0.0, 0, 0.0, 0.0
    for n, o, a in zip(new[mask].tolist(), old[mask].tolist(), advantages[mask].tolist(), strict=True):
        ratio = math.exp(n - o)
        bounded = min(ratio, 1 + clip) if a > 0 else max(ratio, 1 - clip)
        total -= bounded * a
        clipped += bounded != ratio
        kl += ratio - 1 - (n - o)
        largest = max(largest, ratio)
    count = int(mask.sum())
    assert got.loss.item() == pytest.approx(total)
    assert got.clip_fraction.item() == pytest.approx(clipped / max(count, 1))
    assert got.approx_kl.item() == pytest.approx(kl / max(count, 1))
    assert got.ratio_max.item() == pytest.approx(largest)
    assert got.tokens.item() == count


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
def test_padding_and_order_change_nothing_and_padding_has_no_gradient(seed: int):
    first, second, third, mask = _batch(seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    for function in (ppo_policy_loss, ppo_value_loss):
        plain = function(first, second, third, mask)
        padded = [F.pad(x.masked_fill(~mask, math.inf), (0, 2), value=math.nan) for x in (first, second, third)]
        padded[0].requires_grad_()
        longer = function(*padded, F.pad(mask, (0, 2)))
        torch.testing.assert_close(tuple(longer), tuple(plain))
        longer[0].backward()
        assert padded[0].grad.isfinite().all()
        assert not padded[0].grad[~F.pad(mask, (0, 2))].any()
        shuffled = function(*(x[order] for x in (first, second, third, mask)))
        torch.testing.assert_close(tuple(shuffled), tuple(plain))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_parts_add_up_to_the_batch(seed: int):
    """Sums over micro-batches are the sum over the step, whatever their lengths."""
    *tensors, mask = _batch(seed)
    for function in (ppo_policy_loss, ppo_value_loss):
        whole = function(*tensors, mask)[0]
        parts = [function(*(x[rows] for x in tensors), mask[rows])[0] for rows in (slice(0, 1), slice(1, 4))]
        torch.testing.assert_close(sum(parts), whole)


def test_value_loss_by_hand():
    """Old values 0, clip 0.2, returns 1.

    V = 0.5: unclipped error 0.25, clipped (0.2 - 1)^2 = 0.64: 0.64, no gradient. V = -0.5: 2.25 against
    (-0.2 - 1)^2 = 1.44: 2.25, gradient V - R = -1.5. V = 0.1: 0.81, gradient -0.9. Half the sum: 1.85.
    """
    values = torch.tensor([[0.5, -0.5, 0.1]], requires_grad=True)
    loss, fraction = ppo_value_loss(values, torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(1.85)
    assert fraction.item() == pytest.approx(1 / 3)
    assert values.grad[0].tolist() == pytest.approx([0, -1.5, -0.9])


def test_value_loss_without_a_bound_in_reach_is_half_the_squared_error():
    values, old, returns, mask = _batch(3)
    loss, fraction = ppo_value_loss(values, old, returns, mask, clip=1e6)
    torch.testing.assert_close(loss, F.mse_loss(values[mask], returns[mask], reduction="sum") / 2)
    assert fraction.item() == 0


def test_nothing_counted_gives_zero_and_zero_gradients():
    logprobs = torch.zeros(2, 3, requires_grad=True)
    empty = torch.zeros(2, 3, dtype=torch.bool)
    got = ppo_policy_loss(logprobs, torch.zeros(2, 3), torch.ones(2, 3), empty)
    value_loss, fraction = ppo_value_loss(logprobs, torch.zeros(2, 3), torch.ones(2, 3), empty)
    (got.loss + value_loss).backward()
    assert [x.item() for x in got] == [0, 0, 0, 0, 0]
    assert (value_loss.item(), fraction.item()) == (0, 0)
    assert not logprobs.grad.any()


def test_impossible_arguments_are_refused():
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"clip\D*0\b.*\(0, 1\)"):
        ppo_policy_loss(ones, ones, ones, ones.bool(), clip=0)
    with pytest.raises(ValueError, match=r"clip.*-1"):
        ppo_value_loss(ones, ones, ones, ones.bool(), clip=-1)
    with pytest.raises(ValueError, match=r"advantages.*\(2, 1\).*mask.*\(2, 3\)"):
        ppo_policy_loss(ones, ones, ones[:, :1], ones.bool())


def test_without_a_mask_every_number_counts():
    """The tokens of all responses concatenated give the bits of a full mask over rows."""
    generator = torch.Generator().manual_seed(3)
    new, old, advantages, returns = torch.randn(4, 2, 3, generator=generator).unbind()
    full = torch.ones(2, 3, dtype=torch.bool)
    for function in (ppo_policy_loss, ppo_value_loss):
        rows = function(new, old, advantages * returns, full)
        flat = function(new.ravel(), old.ravel(), (advantages * returns).ravel())
        assert all(torch.equal(one, other) for one, other in zip(rows, flat, strict=True))
    with pytest.raises(ValueError, match=naming("old_logprobs", "(1, 3)", "(2, 3)")):
        ppo_policy_loss(new, old[:1], advantages)
