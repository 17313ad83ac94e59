import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from align.objectives import (
    GAE,
    GRPO,
    RLOO,
    DrGRPO,
    Estimate,
    MaxRL,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ScoredResponses,
    gae,
    masked_whiten,
)


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
    with pytest.raises(ValueError, match=r"estimator\.lam.*1\.5"):
        GAE(lam=1.5)
    with pytest.raises(ValueError, match=r"estimator\.gamma.*-1"):
        GAE(gamma=-1)
    with pytest.raises(ValueError, match=r"rewards.*\(1, 3\).*values.*\(1, 3\).*mask.*\(1, 2\)"):
        gae(ones, ones, ones.bool()[:, :2])


def test_gae_puts_the_score_on_the_last_token_and_whitens_over_the_rollout():
    """Scores 5 and 7, penalties 1 2 and 1 1 1: token rewards -1 3 and -1 -1 6. Values 0, lambda 1: rewards to go."""
    mask = torch.tensor([[True, True, False], [True, True, True]])
    penalties = torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
    responses = ScoredResponses(torch.tensor([5.0, 7.0]), penalties, torch.zeros(2, 3), mask)
    assert responses.token_rewards().tolist() == [[-1, 3, 0], [-1, -1, 6]]
    got = GAE(lam=1.0).estimate(responses)
    assert got.returns.tolist() == [[2, 3, 0], [4, 5, 6]]
    torch.testing.assert_close(got.advantages, masked_whiten(got.returns, mask))


def test_group_advantages_by_hand():
    """Rewards 1, 2, 6. Others' means 4, 3.5, 1.5: RLOO -3, -1.5, 4.5. Mean 3, variance (4 + 1 + 9) / 2 = 7."""
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    assert RLOO().compare(rewards)[0].tolist() == pytest.approx([-3, -1.5, 4.5])
    assert GRPO(eps=1e-12).compare(rewards)[0].tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5])
    for estimator in (GRPO(scale_by_std=False), DrGRPO()):
        assert estimator.compare(rewards)[0].tolist() == pytest.approx([-2, -1, 3])


def test_reinforce_plus_plus_by_hand():
    """Scores 5 and 7, penalties 1 2 and 1 1 1: rewards to go 2 3 and 4 5 6, of mean 4 and variance 10 / 4."""
    mask = torch.tensor([[True, True, False], [True, True, True]])
    penalties = torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
    got = ReinforcePlusPlus().estimate(ScoredResponses(torch.tensor([5.0, 7.0]), penalties, torch.zeros(2, 3), mask))
    scale = 2.5**-0.5
    assert got.advantages[0].tolist() == pytest.approx([-2 * scale, -1 * scale, 0])
    assert got.advantages[1].tolist() == pytest.approx([0, scale, 2 * scale])
    assert not got.returns.any()


def test_reinforce_plus_plus_with_baseline_by_hand():
    """Groups 1 3 and 5 5, responses of 1, 1, 1 and 2 tokens: -1 1 0 0 0, of mean 0 and variance 2 / 4."""
    mask = torch.tensor([[1, 0], [1, 0], [1, 0], [1, 1]], dtype=torch.bool)
    scores, zeros = torch.tensor([1.0, 3.0, 5.0, 5.0]), torch.zeros(4, 2)
    got = ReinforcePlusPlusBaseline().estimate(ScoredResponses(scores, zeros, zeros, mask, 2))
    expected = [[-(2**0.5), 0], [2**0.5, 0], [0, 0], [0, 0]]
    torch.testing.assert_close(got.advantages, torch.tensor(expected))


def test_max_rl_by_hand():
    """Rewards 1 0 0 0: mean 1/4, so 3 and -1; 1 1 0 0: 1 and -1; none: 0."""
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert MaxRL().compare(rewards).tolist() == [[3, -1, -1, -1], [1, 1, -1, -1], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"missing_eos_penalty"):
        MaxRL().compare(torch.tensor([[1.0, -1]]))


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("p", [0.1, 0.6])
def test_max_rl_is_the_gradient_of_the_truncated_log_likelihood(size: int, p: float):
    """Expected update of a policy that succeeds with probability p = sigmoid(t), over all 2^K outcomes of a group.

    d log p_i / dt is 1 - p for a success and -p for a failure. The series sum_k (1 - p)^(k - 1) dp/dt, k = 1 to K - 1,
    is the gradient of -sum_k (1 - p)^k / k.
    """
    expected = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=size):
        advantages = MaxRL().compare(torch.tensor([outcome], dtype=torch.float64))[0].tolist()
        update = sum(a * (r - p) for a, r in zip(advantages, outcome, strict=True)) / size
        expected += math.prod(p if r else 1 - p for r in outcome) * update
    series = sum((1 - p) ** (k - 1) for k in range(1, size)) * p * (1 - p)
    assert expected == pytest.approx(series)


@pytest.mark.parametrize("estimator", [GRPO(), RLOO()], ids=["grpo", "rloo"])
def test_every_token_of_a_response_has_its_advantage(estimator):
    """Two groups, 1 0 1 and 3 3 0, by hand: means 2/3 and 2, leave-one-out baselines, unbiased deviations."""
    scores = torch.tensor([1.0, 0.0, 1.0, 3.0, 3.0, 0.0])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0], [1, 1], [1, 1]], dtype=torch.bool)
    zeros = torch.zeros(6, 2)
    got = estimator.estimate(ScoredResponses(scores, zeros, zeros, mask, 3))
    if estimator == RLOO():
        expected = [1 - 0.5, 0 - 1, 1 - 0.5, 3 - 1.5, 3 - 1.5, 0 - 3]
    else:
        deviations = [(1 / 3) ** 0.5] * 3 + [3**0.5] * 3
        expected = [d / (s + 1e-4) for d, s in zip([1 / 3, -2 / 3, 1 / 3, 1, 1, -2], deviations, strict=True)]
    for row, value in enumerate(expected):
        assert got.advantages[row].tolist() == pytest.approx([value, value if mask[row, 1] else 0.0], rel=1e-5)
    assert not got.returns.any()


def test_the_kl_in_the_reward_lowers_a_responses_reward():
    """Equal scores, KL penalties 0 and 1 + 1: the first response is 2 better than the other."""
    penalties = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    mask = torch.ones(2, 2, dtype=torch.bool)
    got = RLOO().estimate(ScoredResponses(torch.zeros(2), penalties, penalties, mask, 2))
    assert got.advantages.tolist() == [[2.0, 2.0], [-2.0, -2.0]]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(2, 6))
def test_group_advantages_match_their_definitions_and_order_changes_nothing(seed: int, size: int):
    g = torch.Generator().manual_seed(seed)
    rewards = torch.randn(3, size, generator=g, dtype=torch.float64)
    for i in range(size):
        others = torch.cat([rewards[:, :i], rewards[:, i + 1 :]], 1).mean(1)
        torch.testing.assert_close(RLOO().compare(rewards)[:, i], rewards[:, i] - others)
    # TRL's GRPO: (r - mean) / (std + 1e-4) with torch's unbiased std.
    expected = (rewards.T - rewards.mean(1)).T / (rewards.std(1) + 1e-4)[:, None]
    torch.testing.assert_close(GRPO().compare(rewards), expected)
    order = torch.randperm(size, generator=g)
    for compare in (RLOO().compare, GRPO().compare):
        torch.testing.assert_close(compare(rewards[:, order]), compare(rewards)[:, order])
        torch.testing.assert_close(compare(rewards[1:]), compare(rewards)[1:])
        torch.testing.assert_close(compare(rewards).sum(1), torch.zeros(3, dtype=torch.float64))


GROUPED = [GRPO(), GRPO(scale_by_std=False), DrGRPO(), RLOO(), ReinforcePlusPlusBaseline()]


@given(reward=st.floats(-(2.0**100), 2.0**100, width=32), size=st.integers(2, 17))
@example(reward=0.699999988079071, size=8)
@example(reward=1000000.3125, size=8)
def test_equal_rewards_give_exactly_0(reward: float, size: int):
    """Also where the mean of equal float32 rewards is not that reward."""
    for estimator in GROUPED:
        assert not estimator.compare(torch.full((2, size), reward)).any()


@pytest.mark.parametrize("estimator", GROUPED, ids=str)
def test_a_group_of_one_is_refused(estimator):
    with pytest.raises(ValueError, match=r"group_size\D*1\b.*\b2\b"):
        estimator.estimate(ScoredResponses(torch.ones(4), *torch.zeros(2, 4, 1), torch.ones(4, 1, dtype=torch.bool)))


def test_an_eps_of_0_is_refused():
    with pytest.raises(ValueError, match=r"estimator\.eps.*\b0\b"):
        GRPO(eps=0)


def test_an_estimate_of_another_shape_or_with_a_nan_on_a_response_is_refused():
    """A NaN where the mask is False is never read."""
    mask, zeros = torch.tensor([[True, True, False]]), torch.zeros(1, 3)
    padding = torch.tensor([[0.0, 0.0, math.nan]])
    Estimate(padding, zeros).check(mask, "Mine")
    with pytest.raises(ValueError, match=r"Mine.*advantages.*\(1, 2\).*\(1, 3\)"):
        Estimate(zeros[:, :2], zeros).check(mask, "Mine")
    with pytest.raises(ValueError, match=r"Mine.*returns.*nan"):
        Estimate(zeros, padding.flip(1)).check(mask, "Mine")
