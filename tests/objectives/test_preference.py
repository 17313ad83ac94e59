import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import naming

from align.objectives import PairLogprobs, PreferenceLoss, preference
from align.objectives.checks import check_shapes
from align.objectives.preference import CDPO, DPO, IPO, ORPO, APOZero, Hinge, LengthNormalisedDPO, RobustDPO, SimPO

LOSSES = [
    each()
    for each in vars(preference).values()
    if isinstance(each, type) and issubclass(each, PreferenceLoss) and each is not PreferenceLoss
]
LOSSES += [IPO(per_token=False)]
losses = pytest.mark.parametrize("loss", LOSSES, ids=str)


def _pair(chosen: float, rejected: float, tokens: tuple[int, int] = (1, 1), reference: tuple[float, float] = (0, 0)):
    numbers = (chosen, rejected, *reference, *tokens)
    return PairLogprobs(*(torch.tensor([n], dtype=torch.float64) for n in numbers))


def _random(seed: int = 0, pairs: int = 5) -> PairLogprobs:
    g = torch.Generator().manual_seed(seed)
    sums = -20 * torch.rand(4, pairs, generator=g, dtype=torch.float64) - 0.1
    return PairLogprobs(*sums, *torch.randint(1, 12, (2, pairs), generator=g))


def test_sigmoid_family_by_hand():
    """Log-ratios 2 ln 3 and ln 3 at beta 1: margin ln 3, p = 3/4.

    DPO: ln 4/3. CDPO at 1/4: 3/4 ln 4/3 + 1/4 ln 4. RobustDPO at 1/4: (3/4 ln 4/3 - 1/4 ln 4) / (1/2).
    Hinge at beta 1/2: 1 - ln(3) / 2. Of 2 and 1 tokens the mean log-ratios are equal: LengthNormalisedDPO gives ln 2.
    """
    pairs = _pair(2 * math.log(3) - 5, math.log(3) - 7, (2, 1), (-5, -7))
    right, wrong = math.log(4 / 3), math.log(4)
    assert DPO(beta=1)(pairs).loss.item() == pytest.approx(right)
    assert CDPO(beta=1, label_smoothing=0.25)(pairs).loss.item() == pytest.approx(0.75 * right + 0.25 * wrong)
    assert RobustDPO(beta=1, label_smoothing=0.25)(pairs).loss.item() == pytest.approx(1.5 * right - 0.5 * wrong)
    assert Hinge(beta=0.5)(pairs).loss.item() == pytest.approx(1 - math.log(3) / 2)
    assert LengthNormalisedDPO(beta=1)(pairs).loss.item() == pytest.approx(math.log(2))


def test_ipo_by_hand():
    """Log-ratios 6 and 1, beta 0.1: the target is 5. Summed margin 5: loss 0. Over 2 and 1 tokens: 3 - 1 = 2: 9."""
    pairs = _pair(6, 1, (2, 1))
    assert IPO(beta=0.1, per_token=False)(pairs).loss.item() == pytest.approx(0)
    assert IPO(beta=0.1)(pairs).loss.item() == pytest.approx(9)


def test_apo_zero_by_hand():
    """Log-ratios ln 3 and -ln 4 at beta 1, of sigmoid 3/4 and 1/5: 1 - 3/4 + 1/5."""
    pairs = _pair(math.log(3) - 5, -math.log(4) - 7, reference=(-5, -7))
    assert APOZero(beta=1)(pairs).loss.item() == pytest.approx(0.45)


def test_simpo_by_hand():
    """Mean log-probs -1 and -2, beta 2, gamma 2: margin 2 - 2 = 0: ln 2. With gamma 1/2 margin 3/2."""
    pairs = _pair(-3, -4, (3, 2))
    assert SimPO(beta=2, gamma=2)(pairs).loss.item() == pytest.approx(math.log(2))
    assert SimPO(beta=2, gamma=0.5)(pairs).loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)))


def test_orpo_by_hand():
    """Mean token probabilities 3/4 and 1/2: odds 3 and 1, sigmoid(ln 3) = 3/4; ln 4/3 once as NLL, once in the term."""
    pairs = _pair(2 * math.log(3 / 4), 3 * math.log(1 / 2), (2, 3))
    assert ORPO(beta=0.1)(pairs).loss.item() == pytest.approx(1.1 * math.log(4 / 3))


@losses
def test_rewards_are_beta_times_what_is_compared(loss: PreferenceLoss):
    """Chosen -6 over 3 tokens, reference -9; rejected -4 over 2, reference -2; beta 1/2.

    Log-ratios 3 and -2, per token 1 and -1; log-probs per token -2 and -2.
    """
    loss = replace(loss, beta=0.5)
    got = loss(_pair(-6, -4, (3, 2), (-9, -2)))
    per_token = isinstance(loss, LengthNormalisedDPO) or (isinstance(loss, IPO) and loss.per_token)
    expected = ((0.5, -0.5) if per_token else (1.5, -1)) if loss.needs_reference else (-1, -1)
    assert (got.reward_chosen.item(), got.reward_rejected.item()) == pytest.approx(expected)
    assert got.loss.shape == got.reward_chosen.shape == (1,)


@losses
def test_at_the_reference(loss: PreferenceLoss):
    """At the start the rewards are 0: ln 2 if logistic, (1 / (2 * 0.1))^2 = 25 for IPO, 1 for Hinge and APOZero."""
    if not loss.needs_reference:
        return
    pairs = _random()
    got = loss(pairs._replace(reference_chosen=pairs.chosen, reference_rejected=pairs.rejected))
    value = {IPO: 25.0, Hinge: 1.0, APOZero: 1.0}.get(type(loss), math.log(2))
    assert got.loss.tolist() == pytest.approx([value] * 5)
    assert (got.reward_chosen - got.reward_rejected).tolist() == [0.0] * 5


@losses
def test_gradient_raises_chosen_and_lowers_rejected(loss: PreferenceLoss):
    chosen, rejected = (torch.tensor([x], requires_grad=True) for x in (-3.0, -4.0))
    one = torch.ones(1)
    pairs = PairLogprobs(chosen, rejected, torch.tensor([-3.0]), torch.tensor([-4.0]), 2 * one, 3 * one)
    loss(pairs).loss.sum().backward()
    assert chosen.grad < 0 < rejected.grad


def test_hinge_has_no_gradient_beyond_its_margin():
    chosen = torch.tensor([11.0], requires_grad=True)
    pairs = PairLogprobs(chosen, *(torch.zeros(1),) * 3, *(torch.ones(1),) * 2)
    Hinge(beta=0.1)(pairs).loss.backward()
    assert chosen.grad.item() == 0


@losses
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_order_and_other_pairs_change_nothing(loss: PreferenceLoss, seed: int):
    pairs = _random(seed)
    expected = loss(pairs).loss
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(PairLogprobs(*(x[order] for x in pairs))).loss, expected[order])
    torch.testing.assert_close(loss(PairLogprobs(*(x[:2] for x in pairs))).loss, expected[:2])


@losses
def test_a_pair_without_tokens_is_finite_with_finite_gradients(loss: PreferenceLoss):
    """Rows that only fill up the last batch."""
    zeros = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    pairs = PairLogprobs(*zeros, *(torch.zeros(1),) * 2, *(torch.zeros(1, dtype=torch.int64),) * 2)
    result = loss(pairs).loss
    result.sum().backward()
    assert result.isfinite().all()
    assert all(x.grad.isfinite().all() for x in zeros)


@losses
def test_extreme_log_probs_are_finite_with_finite_gradients(loss: PreferenceLoss):
    chosen = torch.tensor([-1e4, -1e-9], requires_grad=True)
    rejected = torch.tensor([-1e-9, -1e4], requires_grad=True)
    pairs = PairLogprobs(chosen, rejected, *(torch.zeros(2),) * 2, *(torch.ones(2),) * 2)
    result = loss(pairs).loss
    result.sum().backward()
    assert all(x.isfinite().all() for x in (result, chosen.grad, rejected.grad))


def _trl_dpo(loss_type: str, pairs: PairLogprobs, i: int, beta: float, label_smoothing: float) -> torch.Tensor:
    """TRL's own DPO loss of pair i, through its trainer with a model that only says what we tell it."""
    from trl.trainer.dpo_trainer import DPOTrainer

    tokens = [int(pairs.chosen_tokens[i]), int(pairs.rejected_tokens[i])]
    mask = torch.zeros(2, 1 + max(tokens), dtype=torch.int64)
    logprobs = torch.zeros(2, max(tokens), dtype=torch.float64)
    for row, (count, total) in enumerate(zip(tokens, (pairs.chosen[i], pairs.rejected[i]), strict=True)):
        mask[row, 1 : 1 + count] = 1
        logprobs[row, :count] = total / count

    class Model:
        training = False

        def __call__(self, **_):
            return SimpleNamespace(
                log_probs=logprobs, entropy=logprobs, mean_logits=logprobs, is_top1=torch.zeros_like(logprobs).bool()
            )

    same = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        accelerator=same, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, use_weighting=False
    )
    trainer.f_divergence_type, trainer.beta, trainer.label_smoothing = "reverse_kl", beta, label_smoothing
    trainer.loss_types, trainer.loss_weights = [loss_type], [1.0]
    trainer._metrics, trainer._total_train_tokens = {"eval": defaultdict(list)}, 0
    inputs = {"input_ids": torch.zeros_like(mask), "completion_mask": mask, "attention_mask": torch.ones_like(mask)}
    inputs |= {"ref_chosen_logps": pairs.reference_chosen[i, None]}
    inputs |= {"ref_rejected_logps": pairs.reference_rejected[i, None]}
    trainer.model = Model()
    return DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)


@pytest.mark.parametrize(
    ("loss", "theirs"),
    [
        (DPO(beta=0.3), "sigmoid"),
        (RobustDPO(beta=0.3, label_smoothing=0.1), "robust"),
        (Hinge(beta=0.3), "hinge"),
        (IPO(beta=0.3), "ipo"),
        (LengthNormalisedDPO(beta=0.3), "sigmoid_norm"),
        (APOZero(beta=0.3), "apo_zero"),
    ],
    ids=str,
)
def test_agrees_with_trls_dpo_trainer(loss: PreferenceLoss, theirs: str):
    pairs = _random(3)
    expected = [_trl_dpo(theirs, pairs, i, 0.3, getattr(loss, "label_smoothing", 0.0)) for i in range(5)]
    torch.testing.assert_close(loss(pairs).loss, torch.stack(expected))


def test_cdpo_ipo_and_simpo_agree_with_trls_cpo_trainer():
    """CPO's functions see one log-prob a response: given log-ratios, they are DPO's."""
    from trl.experimental.cpo import CPOTrainer

    pairs = _random(4)
    ratios = pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected
    means = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    for loss, theirs, (chosen, rejected) in (
        (CDPO(beta=0.3, label_smoothing=0.1), "sigmoid", ratios),
        (IPO(beta=0.3, per_token=False), "ipo", ratios),
        (SimPO(beta=0.3, gamma=0.5), "simpo", means),
    ):
        smoothing = getattr(loss, "label_smoothing", 0.0)
        trainer = SimpleNamespace(alpha=0.0, beta=0.3, loss_type=theirs, label_smoothing=smoothing, simpo_gamma=0.5)
        trainer.accelerator = SimpleNamespace(device="cpu")
        expected, *_ = CPOTrainer.cpo_loss(trainer, chosen, rejected)
        torch.testing.assert_close(loss(pairs).loss, expected)


def test_orpo_agrees_with_trls_trainer():
    from trl.experimental.orpo import ORPOTrainer

    pairs = _random(5)
    means = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    ratio, *_ = ORPOTrainer.odds_ratio_loss(trainer, *means)
    torch.testing.assert_close(ORPO(beta=0.3)(pairs).loss.float(), (-means[0]).float() - ratio)


def test_robust_is_unbiased_under_flipped_labels():
    """Chowdhury et al.: averaged over labels flipped at the stated rate, it is the loss of the true labels."""
    pairs = _random(6)
    flipped = PairLogprobs(
        pairs.rejected,
        pairs.chosen,
        pairs.reference_rejected,
        pairs.reference_chosen,
        pairs.rejected_tokens,
        pairs.chosen_tokens,
    )
    robust = RobustDPO(beta=0.3, label_smoothing=0.1)
    torch.testing.assert_close(0.9 * robust(pairs).loss + 0.1 * robust(flipped).loss, DPO(beta=0.3)(pairs).loss)


def test_conservative_loss_is_least_where_the_policy_says_what_the_labels_do():
    """Labels right with 0.9: the best margin is logit(0.9) / beta."""
    best, loss = math.log(9) / 0.3, CDPO(beta=0.3, label_smoothing=0.1)
    found = [loss(_pair(best + step, 0)).loss.item() for step in (-0.5, 0, 0.5)]
    assert found[1] == min(found)


@losses
def test_only_losses_that_need_a_reference_read_it(loss: PreferenceLoss):
    pairs = _random()
    missing = pairs._replace(reference_chosen=None, reference_rejected=None)
    assert loss.needs_reference == (type(loss) not in (SimPO, ORPO))
    if loss.needs_reference:
        with pytest.raises(ValueError, match="needs_reference"):
            loss(missing)
    else:
        assert torch.equal(loss(missing).loss, loss(pairs).loss)


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [(kind, "beta", value) for kind in dict.fromkeys(type(loss) for loss in LOSSES) for value in (0.0, math.nan)]
    + [(kind, "label_smoothing", value) for kind in (CDPO, RobustDPO) for value in (0.5, -0.1)]
    + [(SimPO, "gamma", -1.0)],
)
def test_impossible_settings_are_refused_in_one_line(kind: type[PreferenceLoss], setting: str, value: float):
    with pytest.raises(ValueError, match=rf"{kind.__name__}.*{setting}.*{value}") as caught:
        kind(**{setting: value})
    assert "\n" not in str(caught.value)


def test_dpo_equals_a_reward_models_loss():
    got = DPO(beta=0.3)(_random())
    torch.testing.assert_close(got.loss, -F.logsigmoid(got.reward_chosen - got.reward_rejected))


@pytest.mark.parametrize("field", ["loss", "reward_chosen", "reward_rejected"])
def test_a_loss_of_another_shape_is_refused(field: str):
    """A mean instead of one number for each of two pairs."""
    zero = torch.zeros(2)
    pairs = PairLogprobs(zero, zero, zero, zero, torch.ones(2), torch.ones(2))
    losses = DPO()(pairs)
    check_shapes("Mine", losses._asdict(), pairs.shape)
    with pytest.raises(ValueError, match=naming("Mine", field, "()", "(2,)")):
        check_shapes("Mine", losses._replace(**{field: losses.loss.mean()})._asdict(), pairs.shape)
