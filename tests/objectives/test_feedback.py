"""KTO's loss against numbers by hand, TRL's KTOTrainer, and what must hold for any log-probs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naming import naming

from align.objectives import FeedbackLogprobs, FeedbackLoss, feedback, reference_point
from align.objectives.checks import check_shapes
from align.objectives.feedback import KTO, APOZeroUnpaired

LN3 = math.log(3)


def logprobs(policy, reference, desirable, point=0.0, dtype=torch.float64) -> FeedbackLogprobs:
    policy, reference = torch.tensor(policy, dtype=dtype), torch.tensor(reference, dtype=dtype)
    tokens = torch.full(policy.shape, 2)
    return FeedbackLogprobs(policy, reference, torch.tensor(desirable), tokens, torch.tensor(point, dtype=dtype))


def test_by_hand():
    """beta 0.5, z0 = 2 ln 3. A desirable response with log-ratio 4 ln 3 has reward 2 ln 3 and gain ln 3: sigmoid 3/4,
    loss 1/4; an undesirable one gain -ln 3, sigmoid 1/4, loss 3/4. With log-ratio 0 reward 0 and gain -ln 3 (3/4), and
    ln 3 (1/4). The weights 2 and 3 multiply them.
    """
    loss = KTO(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    found = loss(logprobs([4 * LN3 - 7, 4 * LN3 - 7, -7, -7], [-7.0] * 4, [True, False, True, False], 2 * LN3))
    torch.testing.assert_close(found.loss, torch.tensor([0.5, 2.25, 1.5, 0.75], dtype=torch.float64))
    torch.testing.assert_close(found.reward, torch.tensor([2 * LN3, 2 * LN3, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(found.gain, torch.tensor([LN3, -LN3, -LN3, LN3], dtype=torch.float64))


def test_apo_zero_by_hand():
    """Without reference point: reward ln 3 has loss 1 - 3/4 if desirable, 3/4 if not."""
    found = APOZeroUnpaired(beta=1.0)(logprobs([LN3, LN3], [0.0, 0.0], [True, False], 5.0))
    torch.testing.assert_close(found.loss, torch.tensor([0.25, 0.75], dtype=torch.float64))
    assert (KTO.needs_reference_point, APOZeroUnpaired.needs_reference_point) == (True, False)


def test_the_reference_point_by_hand():
    """Log-ratios 1 and 2; the third does not count, whatever it is: mean 1.5. Of -1 and -2 it is 0."""
    policy, mask = torch.tensor([1.0, 2.0, math.nan], requires_grad=True), torch.tensor([True, True, False])
    point = reference_point(policy, torch.zeros(3), mask)
    assert point.item() == 1.5
    assert not point.requires_grad
    assert reference_point(-policy, torch.zeros(3), mask).item() == 0
    assert reference_point(policy, torch.zeros(3), ~mask & False).item() == 0


def test_the_reference_point_is_a_mean_over_all_ranks():
    """Log-ratios 4 and 4 on one rank, -3 and one that does not count on the other: 5/3; the mean of means is 1/2."""
    policies, masks = torch.tensor([[4.0, 4.0], [-3.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    added: list[torch.Tensor] = []

    def total(mine):
        added.append(mine)
        return torch.stack(added).sum(0)

    for policy, mask in zip(policies, masks, strict=True):
        found = reference_point(policy, torch.zeros(2), mask, total=total)
    assert found.item() == pytest.approx(5 / 3)


def test_a_confident_loss_keeps_its_digits():
    """1 - sigmoid(60) is e^-60 = 8.76e-27, which float32's 1 - sigmoid loses."""
    found = KTO(beta=1.0)(logprobs([60.0], [0.0], [True], dtype=torch.float32))
    assert found.loss.item() == pytest.approx(math.exp(-60), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        (KTO, {"beta": 0.0}, ["KTO", "beta", 0.0]),
        (KTO, {"beta": math.inf}, ["KTO", "beta", "inf"]),
        (KTO, {"desirable_weight": -1.0}, ["KTO", "desirable_weight", -1.0]),
        (APOZeroUnpaired, {"undesirable_weight": math.nan}, ["APOZeroUnpaired", "undesirable_weight", "nan"]),
    ],
)
def test_impossible_settings_are_named(kind, settings, named):
    with pytest.raises(ValueError, match=naming(*named)):
        kind(**settings)


numbers = st.floats(-30, 30)
rows = st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=1, max_size=5)


@given(rows=rows, point=st.floats(0, 20), beta=st.floats(0.01, 2), weights=st.tuples(st.floats(0, 4), st.floats(0, 4)))
def test_what_holds_for_any_log_probs(rows, point, beta, weights):
    """Losses lie between 0 and the weight, half of it at the reference point; a swapped label gives the rest to the
    weight; the gradient raises desirable responses and lowers undesirable ones, none passing through z0.
    """
    policy, reference, desirable = (list(column) for column in zip(*rows, strict=True))
    given = logprobs(policy, reference, desirable, point)
    leaf = given.policy.clone().requires_grad_()
    loss = KTO(beta, *weights)
    found = loss(given._replace(policy=leaf))
    weight = torch.where(given.desirable, *weights)
    assert ((found.loss >= 0) & (found.loss <= weight)).all()
    swapped = KTO(beta, *weights[::-1])(given._replace(desirable=~given.desirable))
    torch.testing.assert_close(found.loss + swapped.loss, weight.double())
    torch.testing.assert_close(loss(given._replace(policy=given.reference + point)).loss, weight.double() / 2)
    found.loss.sum().backward()
    assert (torch.where(given.desirable, leaf.grad, -leaf.grad) <= 0).all()
    chance = found.gain.sigmoid()
    torch.testing.assert_close(leaf.grad.abs(), weight * beta * chance * (1 - chance))


def test_gradients_in_float64():
    given = logprobs([-3.0, -5.0, -4.0], [-4.0, -4.0, -4.5], [True, False, False], 0.3)
    policy = given.policy.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda policy: KTO()(given._replace(policy=policy)).loss, policy)


def test_every_loss_is_finite_on_padding():
    padding = logprobs([0.0], [0.0], [False])._replace(tokens=torch.tensor([0]))
    kinds = [each for each in vars(feedback).values() if isinstance(each, type) and issubclass(each, FeedbackLoss)]
    for kind in kinds:
        if kind is not FeedbackLoss:
            assert kind()(padding).loss.isfinite().all()


def test_a_loss_of_the_wrong_shape_is_named():
    given = logprobs([0.0, 0.0], [0.0, 0.0], [True, False])
    found = KTO()(given)
    with pytest.raises(ValueError, match=naming("Mine", "reward", "()", "(2,)")):
        check_shapes("Mine", found._replace(reward=found.reward.mean())._asdict(), given.shape)
