import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.objectives import gae, grpo, rloo


def test_gae_by_hand():
    """Values 1, 2, rewards 0, 4, gamma 1/2, lambda 1/2; then one token of padding.

    delta_1 = 4 + 0 - 2 = 2, delta_0 = 0 + 1/2 * 2 - 1 = 0. A_1 = 2, A_0 = 0 + 1/4 * 2 = 1/2. Returns 4 and 3/2.
    """
    mask = torch.tensor([[True, True, False]])
    advantages, returns = gae(
        torch.tensor([[0, 4, math.nan]]), torch.tensor([[1, 2, math.inf]]), mask, gamma=0.5, lam=0.5
    )
    assert advantages.tolist() == [[0.5, 2, 0]]
    assert returns.tolist() == [[1.5, 4, 0]]


def _batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 4, 7, generator=g, dtype=torch.float64)
    starts, lengths = torch.randint(3, (4, 1), generator=g), torch.randint(5, (4, 1), generator=g)
    positions = torch.arange(7)
    return rewards, values, (positions >= starts) & (positions < starts + lengths)


def _direct(rewards, values, mask, gamma, lam):
    """Equation 16 as a double sum over the tokens of each row."""
    advantages = torch.zeros_like(rewards)
    for b in range(len(rewards)):
        tokens = mask[b].nonzero()[:, 0].tolist()
        r, v = rewards[b, tokens].tolist(), values[b, tokens].tolist() + [0.0]
        for i, t in enumerate(tokens):
            advantages[b, t] = sum(
                (gamma * lam) ** (j - i) * (r[j] + gamma * v[j + 1] - v[j]) for j in range(i, len(tokens))
            )
    return advantages


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), gamma=st.sampled_from([0.0, 0.9, 1.0]), lam=st.sampled_from([0.0, 0.95, 1.0]))
def test_gae_equals_the_double_sum_and_ignores_padding_and_order(seed: int, gamma: float, lam: float):
    rewards, values, mask = _batch(seed)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages, _direct(rewards, values, mask, gamma, lam))
    torch.testing.assert_close(returns, (advantages + values) * mask)
    rubbish = [x.masked_fill(~mask, math.nan) for x in (rewards, values)]
    assert torch.equal(gae(*rubbish, mask, gamma=gamma, lam=lam)[0], advantages)
    longer = [torch.nn.functional.pad(x, (0, 2)) for x in (rewards, values, mask)]
    assert torch.equal(gae(*longer, gamma=gamma, lam=lam)[0][:, :7], advantages)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(gae(rewards[order], values[order], mask[order], gamma=gamma, lam=lam)[0], advantages[order])


def test_lambda_one_trusts_the_rewards_and_lambda_zero_the_values():
    rewards, values, mask = _batch(1)
    _, returns = gae(rewards, values, mask, lam=1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, to_go)
    _, one_step = gae(rewards, values, mask, lam=0.0)
    after = torch.cat([(values * mask)[:, 1:], torch.zeros(4, 1)], 1)
    torch.testing.assert_close(one_step, (rewards + after) * mask)


def test_gae_leaves_its_arguments_alone_and_has_no_gradient():
    rewards, values, mask = _batch(2)
    before = rewards.clone(), values.clone()
    advantages, returns = gae(rewards, values.requires_grad_(), mask)
    assert not advantages.requires_grad
    assert not returns.requires_grad
    assert torch.equal(rewards, before[0])
    assert torch.equal(values.detach(), before[1])


def test_gae_refuses_what_it_cannot_mean():
    ones = torch.ones(1, 3)
    with pytest.raises(ValueError, match="mask"):
        gae(ones, ones, torch.tensor([[True, False, True]]))
    with pytest.raises(ValueError, match=r"lam.*1\.5"):
        gae(ones, ones, ones.bool(), lam=1.5)
    with pytest.raises(ValueError, match=r"gamma.*-1"):
        gae(ones, ones, ones.bool(), gamma=-1)
    with pytest.raises(ValueError, match=r"rewards.*\(1, 3\).*values.*\(1, 3\).*mask.*\(1, 2\)"):
        gae(ones, ones, ones.bool()[:, :2])


def test_group_advantages_by_hand():
    """Rewards 1, 2, 6. Others' means 4, 3.5, 1.5: RLOO -3, -1.5, 4.5. Mean 3, variance (4 + 1 + 9) / 2 = 7."""
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    assert rloo(rewards)[0].tolist() == pytest.approx([-3, -1.5, 4.5])
    assert grpo(rewards, eps=0.0)[0].tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5])
    assert grpo(rewards, scale_by_std=False)[0].tolist() == pytest.approx([-2, -1, 3])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(2, 6))
def test_group_advantages_match_their_definitions_and_order_changes_nothing(seed: int, size: int):
    g = torch.Generator().manual_seed(seed)
    rewards = torch.randn(3, size, generator=g, dtype=torch.float64)
    for i in range(size):
        others = torch.cat([rewards[:, :i], rewards[:, i + 1 :]], 1).mean(1)
        torch.testing.assert_close(rloo(rewards)[:, i], rewards[:, i] - others)
    # TRL's GRPO: (r - mean) / (std + 1e-4) with torch's unbiased std.
    torch.testing.assert_close(grpo(rewards), (rewards.T - rewards.mean(1)).T / (rewards.std(1) + 1e-4)[:, None])
    order = torch.randperm(size, generator=g)
    for function in (rloo, grpo):
        torch.testing.assert_close(function(rewards[:, order]), function(rewards)[:, order])
        torch.testing.assert_close(function(rewards[1:]), function(rewards)[1:])
        torch.testing.assert_close(function(rewards).sum(1), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("function", [rloo, grpo])
def test_equal_rewards_teach_nothing_and_a_group_of_one_is_refused(function):
    assert function(torch.full((2, 4), 0.5)).tolist() == [[0.0] * 4] * 2
    with pytest.raises(ValueError, match=r"rewards.*\(4, 1\)"):
        function(torch.ones(4, 1))
