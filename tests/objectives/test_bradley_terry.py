import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from align.objectives import bradley_terry_loss


def test_by_hand():
    """Scores 0 and -ln 3: p = 3/4, loss ln 4/3. A margin of ln 3 makes it a coin: ln 2.

    Labels wrong one time in four: 3/4 ln 4/3 + 1/4 ln 4. Centering 0.1 adds 0.1 (ln 3)^2.
    """
    chosen, rejected = torch.tensor([0.0]), torch.tensor([-math.log(3)])
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(math.log(4 / 3))
    assert bradley_terry_loss(chosen, rejected, margin=math.log(3)).item() == pytest.approx(math.log(2))
    smoothed = bradley_terry_loss(chosen, rejected, label_smoothing=0.25).item()
    assert smoothed == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    centred = bradley_terry_loss(chosen, rejected, centering=0.1).item()
    assert centred == pytest.approx(math.log(4 / 3) + 0.1 * math.log(3) ** 2)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.4]),
    centering=st.sampled_from([0.0, 0.01]),
    with_margin=st.booleans(),
)
def test_equals_binary_cross_entropy(seed: int, label_smoothing: float, centering: float, with_margin: bool):
    """The formula of TRL's RewardTrainer is -logsigmoid(difference - margin) + c (sum)^2; smoothing is a soft label."""
    g = torch.Generator().manual_seed(seed)
    chosen, rejected, margin = 5 * torch.randn(3, 6, generator=g, dtype=torch.float64)
    got = bradley_terry_loss(
        chosen,
        rejected,
        margin=margin if with_margin else None,
        label_smoothing=label_smoothing,
        centering=centering,
    )
    logit = chosen - rejected - (margin if with_margin else 0)
    label = torch.full_like(logit, 1 - label_smoothing)
    plain = F.binary_cross_entropy_with_logits(logit, label, reduction="none")
    torch.testing.assert_close(got, plain + centering * (chosen + rejected) ** 2)
    order = torch.randperm(6, generator=g)
    shuffled = bradley_terry_loss(
        chosen[order],
        rejected[order],
        margin=margin[order] if with_margin else None,
        label_smoothing=label_smoothing,
        centering=centering,
    )
    torch.testing.assert_close(shuffled, got[order])


def test_a_common_constant_changes_nothing_without_centering_and_costs_with_it():
    chosen, rejected = torch.tensor([1.0]), torch.tensor([-1.0])
    assert torch.equal(bradley_terry_loss(chosen + 7, rejected + 7), bradley_terry_loss(chosen, rejected))
    assert bradley_terry_loss(chosen + 7, rejected + 7, centering=0.1) > bradley_terry_loss(
        chosen, rejected, centering=0.1
    )


def test_hopeless_pairs_have_finite_loss_and_full_gradient():
    chosen = torch.tensor([-1000.0], requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.zeros(1))
    loss.backward()
    assert (loss.item(), chosen.grad.item()) == (1000.0, -1.0)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"label_smoothing": 0.5}, r"label_smoothing.*0\.5.*\[0, 0\.5\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing.*-0\.1"),
        ({"centering": -1.0}, r"centering.*-1\.0"),
    ],
)
def test_impossible_settings_are_refused(settings_: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        bradley_terry_loss(torch.zeros(2), torch.zeros(2), **settings_)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"chosen.*\(2,\).*rejected.*\(2, 1\)"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(2, 1))
