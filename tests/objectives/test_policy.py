import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import naming

from align.objectives import (
    ConstantLength,
    ResponseMean,
    SequenceClip,
    TokenClip,
    TokenMean,
    policy_loss,
    truncated_importance_weights,
    value_losses,
)


def test_token_clip_by_hand():
    """Ratios 2, 2, 1/2, 1/2 with advantages 1, -1, 1, -1 at 0.2: -1.2 (clipped), 2, -0.5, 0.8 (clipped).

    Mean k3: (2 (1 - ln 2) + 2 (ln 2 - 1/2)) / 4 = 1/4. With 1 + 0.28 as the upper bound the first is -1.28.
    """
    logprobs = torch.tensor([2, 2, 0.5, 0.5]).log()
    advantages, lengths = torch.tensor([1.0, -1, 1, -1]), torch.tensor([3, 1])
    got = policy_loss(TokenClip(), logprobs, torch.zeros(4), advantages, lengths)
    assert got.losses.tolist() == pytest.approx([-1.2, 2, -0.5, 0.8])
    assert got.clip_fraction.item() == 0.5
    assert got.approx_kl.item() == pytest.approx(0.25)
    assert got.ratio_max.item() == pytest.approx(2)
    higher = policy_loss(TokenClip(low=0.2, high=0.28), logprobs, torch.zeros(4), advantages, lengths)
    assert higher.losses.tolist() == pytest.approx([-1.28, 2, -0.5, 0.8])


def test_sequence_clip_by_hand():
    """Responses of 2 and 1 tokens with ratios (4, 1) and 1/2: geometric means 2 and 1/2, at 1 - 0.25 and 1 + 0.5.

    Advantages 1, 1 and 1: -1.5 (clipped), -1.5 (clipped) and -0.5. The mean over responses of their means: -1.
    Unclipped, the first response's gradient is -2 x 1/2 for each of its tokens.
    """
    logprobs = torch.tensor([4.0, 1, 0.5]).log().requires_grad_()
    lengths, ones = torch.tensor([2, 1]), torch.ones(3)
    got = policy_loss(SequenceClip(0.25, 0.5), logprobs, torch.zeros(3), ones, lengths)
    assert got.losses.tolist() == pytest.approx([-1.5, -1.5, -0.5])
    assert got.clip_fraction.item() == pytest.approx(2 / 3)
    average = SequenceClip.default_average
    mean = (got.losses * average.weights(lengths)).sum() / average.count(lengths, 9)
    assert mean.item() == pytest.approx(-1)
    open_ = policy_loss(SequenceClip(0.25, 5.0), logprobs, torch.zeros(3), ones, lengths)
    (open_.losses * average.weights(lengths)).sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-1, -1, -0.5])


def test_averages_by_hand():
    """Responses of 1 and 3 tokens, of at most 5."""
    lengths = torch.tensor([1, 3])
    weights = {type(a): a.weights(lengths).tolist() for a in (TokenMean(), ResponseMean(), ConstantLength())}
    assert weights[TokenMean] == weights[ConstantLength] == [1, 1, 1, 1]
    assert weights[ResponseMean] == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])
    counts = [a.count(lengths, 5).item() for a in (TokenMean(), ResponseMean(), ConstantLength())]
    assert counts == [4, 2, 10]


@pytest.mark.parametrize("average", [TokenMean(), ResponseMean(), ConstantLength()], ids=lambda a: type(a).__name__)
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=5), cut=st.integers(1, 4))
def test_an_average_does_not_depend_on_how_a_step_is_split(average, lengths, cut):
    values = torch.arange(float(sum(lengths)), dtype=torch.float64)
    parts = [lengths[:cut], lengths[cut:]]
    added = counted = 0.0
    for part, of in zip(parts, values.split([sum(p) for p in parts]), strict=True):
        part = torch.tensor(part, dtype=torch.long)
        added += float((of * average.weights(part)).sum())
        counted += int(average.count(part, 6))
    whole = torch.tensor(lengths)
    expected = float((values * average.weights(whole)).sum()) / int(average.count(whole, 6))
    assert added / counted == pytest.approx(expected)


def test_importance_weights_by_hand():
    """Probabilities 0.6 / 0.3, 0.1 / 0.4, 0.9 / 0.1 and padding: 2, 1/4, 9 truncated to 3, and 1."""
    trainer, sampler = torch.tensor([[0.6, 0.1, 0.9, 1]]).log(), torch.tensor([[0.3, 0.4, 0.1, 1]]).log()
    assert truncated_importance_weights(trainer, sampler, cap=3.0)[0].tolist() == pytest.approx([2, 0.25, 3, 1])
    with pytest.raises(ValueError, match=naming("cap", 0.5)):
        truncated_importance_weights(trainer, sampler, cap=0.5)


def test_policy_gradient_vanishes_only_where_the_clip_agrees_with_the_advantage():
    """d loss / d logprob = -ratio * advantage where it is not clipped."""
    logprobs = torch.tensor([2, 2, 0.5, 0.5, 1.1]).log().requires_grad_()
    advantages = torch.tensor([1.0, -1, 1, -1, 3])
    policy_loss(TokenClip(), logprobs, torch.zeros(5), advantages, torch.tensor([5])).losses.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([0, 2, -0.5, 0, -3.3])


@pytest.mark.parametrize("surrogate", [TokenClip(), SequenceClip()], ids=lambda s: type(s).__name__)
def test_the_first_minibatch_is_the_policy_gradient(surrogate):
    """Ratio 1: nothing clipped, KL 0, and the gradient is minus the advantage.

    A response's ratio has 1 / L of the gradient from each of its tokens, so there it is the mean of its advantages.
    """
    logprobs = torch.randn(12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    advantages, lengths = (torch.arange(12.0) - 6) // 3, torch.tensor([3, 3, 3, 3])
    got = policy_loss(surrogate, logprobs, logprobs.detach(), advantages, lengths)
    got.losses.sum().backward()
    assert (got.clip_fraction.item(), got.approx_kl.item(), got.ratio_max.item()) == (0, 0, 1)
    torch.testing.assert_close(logprobs.grad, -advantages)


def _batch(seed: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (4,), generator=g)
    return *(0.4 * torch.randn(3, int(lengths.sum()), generator=g, dtype=torch.float64)), lengths


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), low=st.sampled_from([0.1, 0.5]), high=st.sampled_from([None, 0.3, 2.0]))
def test_clips_equal_the_case_by_case_definition(seed: int, low: float, high: float | None):
    """Schulman et al., section 3: with A > 0 the ratio counts up to 1 + high, with A < 0 down to 1 - low."""
    new, old, advantages, lengths = _batch(seed)
    upper = 1 + (low if high is None else high)
    ratios = {"token": [], "sequence": []}
    for of in (new - old).split(lengths.tolist()):
        ratios["token"] += [math.exp(x) for x in of.tolist()]
        ratios["sequence"] += [math.exp(sum(of.tolist()) / len(of))] * len(of)
    for surrogate, kind in ((TokenClip(low, high), "token"), (SequenceClip(low, high), "sequence")):
        got = policy_loss(surrogate, new, old, advantages, lengths)
        bounded = [
            min(r, upper) if a > 0 else max(r, 1 - low) for r, a in zip(ratios[kind], advantages.tolist(), strict=True)
        ]
        expected = [-r * a for r, a in zip(bounded, advantages.tolist(), strict=True)]
        assert got.losses.tolist() == pytest.approx(expected)
        clipped = sum(r != b for r, b in zip(ratios[kind], bounded, strict=True))
        assert got.clip_fraction.item() == pytest.approx(clipped / len(new))
        kl = sum(r - 1 - math.log(r) for r in ratios["token"]) / len(new)
        assert got.approx_kl.item() == pytest.approx(kl)
        assert got.ratio_max.item() == pytest.approx(max(ratios["token"]))


def test_value_losses_by_hand():
    """Old values 0, clip 0.2, returns 1.

    V = 0.5: unclipped error 0.25, clipped (0.2 - 1)^2 = 0.64: 0.64, no gradient. V = -0.5: 2.25 against
    (-0.2 - 1)^2 = 1.44: 2.25, gradient V - R = -1.5. V = 0.1: 0.81, gradient -0.9.
    """
    values = torch.tensor([0.5, -0.5, 0.1], requires_grad=True)
    losses, fraction = value_losses(values, torch.zeros(3), torch.ones(3))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.32, 1.125, 0.405])
    assert fraction.item() == pytest.approx(1 / 3)
    assert values.grad.tolist() == pytest.approx([0, -1.5, -0.9])


def test_value_losses_without_a_bound_in_reach_are_half_the_squared_error():
    values, old, returns, _ = _batch(3)
    losses, fraction = value_losses(values, old, returns, clip=1e6)
    torch.testing.assert_close(losses, F.mse_loss(values, returns, reduction="none") / 2)
    assert fraction.item() == 0


def test_no_tokens_give_zero_and_zero_gradients():
    empty = torch.zeros(0, requires_grad=True)
    for surrogate in (TokenClip(), SequenceClip()):
        got = policy_loss(surrogate, empty, empty.detach(), empty.detach(), torch.zeros(0, dtype=torch.long))
        losses, fraction = value_losses(empty, empty.detach(), empty.detach())
        (got.losses.sum() + losses.sum()).backward()
        assert [got.clip_fraction.item(), got.approx_kl.item(), got.ratio_max.item(), fraction.item()] == [0, 0, 0, 0]


def test_impossible_arguments_are_refused():
    ones = torch.ones(3)
    for low in (0, 1, math.nan):
        with pytest.raises(ValueError, match=naming("surrogate.low", low)):
            TokenClip(low=low)
    with pytest.raises(ValueError, match=naming("surrogate.high", -1)):
        SequenceClip(high=-1)
    with pytest.raises(ValueError, match=r"clip.*-1"):
        value_losses(ones, ones, ones, clip=-1)
    with pytest.raises(ValueError, match=naming("advantages", "(1,)", "(3,)")):
        policy_loss(TokenClip(), ones, ones, ones[:1], torch.tensor([3]))
    with pytest.raises(ValueError, match=naming("lengths", 2, 3)):
        policy_loss(TokenClip(), ones, ones, ones, torch.tensor([2]))
