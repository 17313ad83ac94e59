import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.objectives import K1, K2, K3, AdaptiveKL, FixedKL, check_kl_use, distribution_kl

ALL = {"k1": K1(), "k2": K2(), "k3": K3()}


def test_by_hand():
    """The policy gives 1/2, the reference 1/4: d = ln 2. k1 = ln 2, k2 = (ln 2)^2 / 2, k3 = 1/2 - 1 + ln 2."""
    policy, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    got = [estimator.estimate(policy, reference).item() for estimator in ALL.values()]
    assert got == pytest.approx([math.log(2), math.log(2) ** 2 / 2, math.log(2) - 0.5])


def _two_policies(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a policy over five tokens, its log-probs, and those of a reference."""
    logits, reference = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits.requires_grad_()
    return logits, logits.log_softmax(-1), reference.log_softmax(-1)


def _gradient(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_which_estimators_are_unbiased_and_which_gradients_are_right(seed: int):
    """The expectation over five tokens, by enumeration: the table at the head of the module."""
    logits, policy, reference = _two_policies(seed)
    p = policy.detach().exp()
    kl = (policy.exp() * (policy - reference)).sum()
    opposite = (reference.exp() * (reference - policy)).sum()
    right = _gradient(kl, logits)
    estimates = {kind: estimator.estimate(policy, reference) for kind, estimator in ALL.items()}
    for kind in ("k1", "k3"):
        torch.testing.assert_close((p * estimates[kind]).sum(), kl)
    as_loss = {kind: _gradient((p * k).sum(), logits) for kind, k in estimates.items()}
    in_reward = {kind: _gradient((p * k.detach() * policy).sum(), logits) for kind, k in estimates.items()}
    torch.testing.assert_close(as_loss["k1"], torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(as_loss["k2"], right)
    torch.testing.assert_close(as_loss["k3"], _gradient(opposite, logits))
    torch.testing.assert_close(in_reward["k1"], right)
    torch.testing.assert_close(in_reward["k3"], right - _gradient(opposite, logits))
    assert not torch.allclose(in_reward["k2"], right, rtol=1e-2)


def test_near_the_reference_k3_agrees_as_a_loss_and_vanishes_in_the_reward():
    logits, policy, _ = _two_policies(0)
    step = 1e-3 * torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference = (logits.detach() + step).log_softmax(-1)
    p = policy.detach().exp()
    right = _gradient((policy.exp() * (policy - reference)).sum(), logits)
    k3 = K3().estimate(policy, reference)
    assert (_gradient((p * k3).sum(), logits) - right).norm() < 1e-2 * right.norm()
    assert _gradient((p * k3.detach() * policy).sum(), logits).norm() < 1e-2 * right.norm()


@pytest.mark.parametrize("estimator", ALL.values(), ids=ALL)
def test_equal_policies_give_zero_and_small_differences_are_not_rounded_away(estimator):
    same = torch.tensor([-3.0, 0.0, -100.0])
    assert estimator.estimate(same, same).tolist() == [0, 0, 0]
    unsigned = estimator != K1()
    tiny = estimator.estimate(torch.tensor([1e-4]), torch.zeros(1)).item()
    assert tiny == pytest.approx(5e-9 if unsigned else 1e-4, rel=0.1)
    assert estimator.estimate(torch.tensor([-1e-4]), torch.zeros(1)).item() * (1 if unsigned else -1) >= 0


@pytest.mark.parametrize(("estimator", "use"), [(K1(), "reward"), (K2(), "loss"), (K3(), "loss")], ids=str)
def test_right_uses_pass(estimator, use):
    check_kl_use(estimator, use)


@pytest.mark.parametrize(
    ("estimator", "use", "message"),
    [
        (K1(), "loss", "K1.*loss.*K2.*K3"),
        (K2(), "reward", "K2.*reward.*K1"),
        (K3(), "reward", "K3.*reward.*K1"),
    ],
    ids=str,
)
def test_wrong_uses_are_refused_with_the_cure(estimator, use, message: str):
    with pytest.raises(ValueError, match=message):
        check_kl_use(estimator, use)


def test_the_kl_of_distributions_by_hand_and_as_the_mean_of_k1():
    """Policy 3/4, 1/4 and reference 1/2, 1/2: 3/4 ln(3/2) + 1/4 ln(1/2). At temperature 2 the policy is 0.63."""
    policy, reference = torch.tensor([0.75, 0.25]).log() + 7, torch.zeros(2)
    kl = distribution_kl(policy, reference)
    assert kl.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)
    logprobs = policy.log_softmax(-1)
    assert kl.item() == pytest.approx(
        (logprobs.exp() * K1().estimate(logprobs, reference.log_softmax(-1))).sum().item()
    )
    p = 3**0.5 / (1 + 3**0.5)
    expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert distribution_kl(policy, reference, temperature=2.0).item() == pytest.approx(expected, rel=1e-5)


def test_adaptive_controller_by_hand():
    """Target 6, horizon 100: KL 12 is an error of 1, clipped to 0.2; 50 responses are half a horizon: times 1.1."""
    controller = AdaptiveKL(target=6, horizon=100, initial=0.1)
    controller.update(12, 50)
    assert controller.value == pytest.approx(0.11)
    controller.update(6, 50)
    assert controller.value == pytest.approx(0.11)
    controller.update(5.4, 100)
    assert controller.value == pytest.approx(0.11 * 0.9)
    controller.update(-3, 10**6)
    assert controller.value == pytest.approx(0.11 * 0.9 * 0.8)


@settings(max_examples=30, deadline=None)
@given(kls=st.lists(st.floats(-50, 500), max_size=30), n=st.integers(1, 1000))
def test_adaptive_controller_stays_positive_and_resumes_to_the_bit(kls: list[float], n: int):
    whole, half = AdaptiveKL(6, 64, 0.1), AdaptiveKL(6, 64, 0.1)
    for kl in kls:
        before = whole.value
        whole.update(kl, n)
        assert whole.value > 0
        assert (whole.value > before) == (kl > 6)
        resumed = AdaptiveKL(6, 64, 0.1)
        resumed.load_state_dict(half.state_dict())
        resumed.update(kl, n)
        half = resumed
    assert half.value == whole.value


def test_a_changed_initial_coefficient_restarts_the_adaptive_controller():
    whole = AdaptiveKL(6, 64, 0.1)
    whole.update(12, 64)
    resumed = AdaptiveKL(6, 64, 0.3)
    resumed.load_state_dict(whole.state_dict())
    assert (whole.value, resumed.value) == (pytest.approx(0.12), 0.3)


def test_fixed_controller_never_moves():
    controller = FixedKL(0.05)
    controller.update(100, 64)
    other = FixedKL(0.1)
    other.load_state_dict(controller.state_dict())
    assert (controller.value, other.value) == (0.05, 0.1)
    assert FixedKL(0.0).value == 0


@pytest.mark.parametrize("setting", ["target", "horizon", "initial"])
def test_impossible_settings_are_refused(setting: str):
    with pytest.raises(ValueError, match=rf"{setting}\D*0"):
        AdaptiveKL(**{"target": 6, "horizon": 10, "initial": 0.1} | {setting: 0})
    with pytest.raises(ValueError, match="-1"):
        FixedKL(-1)
    with pytest.raises(ValueError, match=r"KL.*nan.*0\.1"):
        AdaptiveKL(6, 10, 0.1).update(math.nan, 1)
