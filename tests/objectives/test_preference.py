import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from align.objectives import (
    PREFERENCE_LOSSES,
    PairLogprobs,
    check_preference_settings,
    needs_reference,
    preference_loss,
)

SMOOTHING = {"cdpo": 0.1, "robust": 0.1}
names = pytest.mark.parametrize("name", list(PREFERENCE_LOSSES))


def _pair(chosen: float, rejected: float, tokens: tuple[int, int] = (1, 1), reference: tuple[float, float] = (0, 0)):
    numbers = (chosen, rejected, *reference, *tokens)
    return PairLogprobs(*(torch.tensor([n], dtype=torch.float64) for n in numbers))


def _random(seed: int = 0, pairs: int = 5) -> PairLogprobs:
    g = torch.Generator().manual_seed(seed)
    sums = -20 * torch.rand(4, pairs, generator=g, dtype=torch.float64) - 0.1
    return PairLogprobs(*sums, *torch.randint(1, 12, (2, pairs), generator=g))


def _loss(name: str, pairs: PairLogprobs, **more: float) -> torch.Tensor:
    return preference_loss(name, pairs, **{"beta": 0.3, "label_smoothing": SMOOTHING.get(name, 0.0)} | more).loss


def test_sigmoid_family_by_hand():
    """Log-ratios 2 ln 3 and ln 3 at beta 1: margin ln 3, p = 3/4.

    sigmoid: ln 4/3. cdpo at 1/4: 3/4 ln 4/3 + 1/4 ln 4. robust at 1/4: (3/4 ln 4/3 - 1/4 ln 4) / (1/2).
    hinge at beta 1/2: 1 - ln(3) / 2. Of 2 and 1 tokens the mean log-ratios are equal: length_normalised gives ln 2.
    """
    pairs = _pair(2 * math.log(3) - 5, math.log(3) - 7, (2, 1), (-5, -7))
    right, wrong = math.log(4 / 3), math.log(4)
    assert _loss("sigmoid", pairs, beta=1).item() == pytest.approx(right)
    assert _loss("cdpo", pairs, beta=1, label_smoothing=0.25).item() == pytest.approx(0.75 * right + 0.25 * wrong)
    assert _loss("robust", pairs, beta=1, label_smoothing=0.25).item() == pytest.approx(1.5 * right - 0.5 * wrong)
    assert _loss("hinge", pairs, beta=0.5).item() == pytest.approx(1 - math.log(3) / 2)
    assert _loss("length_normalised", pairs, beta=1).item() == pytest.approx(math.log(2))


def test_ipo_by_hand():
    """Log-ratios 6 and 1, beta 0.1: the target is 5. Summed margin 5: loss 0. Over 2 and 1 tokens: 3 - 1 = 2: 9."""
    pairs = _pair(6, 1, (2, 1))
    assert _loss("ipo_sum", pairs, beta=0.1).item() == pytest.approx(0)
    assert _loss("ipo", pairs, beta=0.1).item() == pytest.approx(9)


def test_simpo_by_hand():
    """Mean log-probs -1 and -2, beta 2, gamma 2: margin 2 - 2 = 0: ln 2. By default gamma is 1/2."""
    pairs = _pair(-3, -4, (3, 2))
    assert _loss("simpo", pairs, beta=2, gamma=2).item() == pytest.approx(math.log(2))
    assert _loss("simpo", pairs, beta=2).item() == pytest.approx(math.log(1 + math.exp(-1.5)))


def test_orpo_by_hand():
    """Mean token probabilities 3/4 and 1/2: odds 3 and 1, sigmoid(ln 3) = 3/4; ln 4/3 once as NLL, once in the term."""
    pairs = _pair(2 * math.log(3 / 4), 3 * math.log(1 / 2), (2, 3))
    assert _loss("orpo", pairs, beta=0.1).item() == pytest.approx(1.1 * math.log(4 / 3))


@names
def test_rewards_are_beta_times_what_is_compared(name: str):
    """Chosen -6 over 3 tokens, reference -9; rejected -4 over 2, reference -2; beta 1/2."""
    got = preference_loss(name, _pair(-6, -4, (3, 2), (-9, -2)), beta=0.5)
    expected = {"simpo": (-1, -1), "orpo": (-1, -1), "ipo": (0.5, -0.5), "length_normalised": (0.5, -0.5)}
    assert (got.reward_chosen.item(), got.reward_rejected.item()) == pytest.approx(expected.get(name, (1.5, -1)))
    assert got.loss.shape == got.reward_chosen.shape == (1,)


@pytest.mark.parametrize(
    ("name", "value"),
    [("sigmoid", math.log(2)), ("cdpo", math.log(2)), ("robust", math.log(2)), ("hinge", 1.0)]
    + [("length_normalised", math.log(2)), ("ipo", 25.0), ("ipo_sum", 25.0)],
)
def test_at_the_reference(name: str, value: float):
    """Before the first step the margin is 0: ln 2 for what is logistic, (1 / 2 beta)^2 = 25 for IPO at 0.1."""
    pairs = _random()
    got = preference_loss(
        name, pairs._replace(reference_chosen=pairs.chosen, reference_rejected=pairs.rejected), beta=0.1
    )
    assert got.loss.tolist() == pytest.approx([value] * 5)
    assert (got.reward_chosen - got.reward_rejected).tolist() == [0.0] * 5


@names
def test_gradient_raises_chosen_and_lowers_rejected(name: str):
    chosen, rejected = (torch.tensor([x], requires_grad=True) for x in (-3.0, -4.0))
    one = torch.ones(1)
    pairs = PairLogprobs(chosen, rejected, torch.tensor([-3.0]), torch.tensor([-4.0]), 2 * one, 3 * one)
    got = preference_loss(name, pairs, beta=0.1, label_smoothing=SMOOTHING.get(name, 0.0))
    got.loss.sum().backward()
    assert chosen.grad < 0 < rejected.grad
    assert not got.reward_chosen.requires_grad


def test_hinge_has_no_gradient_beyond_its_margin():
    chosen = torch.tensor([11.0], requires_grad=True)
    pairs = PairLogprobs(chosen, *(torch.zeros(1),) * 3, *(torch.ones(1),) * 2)
    preference_loss("hinge", pairs, beta=0.1).loss.backward()
    assert chosen.grad.item() == 0


@names
def test_sft_term_is_added_per_token(name: str):
    pairs = _random()
    if name == "orpo":
        with pytest.raises(ValueError, match=r"sft_coef.*0\.7.*'orpo'"):
            _loss(name, pairs, sft_coef=0.7)
        return
    torch.testing.assert_close(
        _loss(name, pairs, sft_coef=0.7), _loss(name, pairs) - 0.7 * pairs.chosen / pairs.chosen_tokens
    )


@names
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_order_and_other_pairs_change_nothing(name: str, seed: int):
    pairs = _random(seed)
    loss = _loss(name, pairs)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(_loss(name, PairLogprobs(*(x[order] for x in pairs))), loss[order])
    torch.testing.assert_close(_loss(name, PairLogprobs(*(x[:2] for x in pairs))), loss[:2])


@names
def test_a_pair_without_tokens_is_finite_with_finite_gradients(name: str):
    """Rows that only fill up the last batch."""
    zeros = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    pairs = PairLogprobs(*zeros, *(torch.zeros(1),) * 2, *(torch.zeros(1, dtype=torch.int64),) * 2)
    sft = 0.0 if name == "orpo" else 0.1
    loss = _loss(name, pairs, sft_coef=sft)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(x.grad.isfinite().all() for x in zeros)


@names
def test_extreme_log_probs_are_finite_with_finite_gradients(name: str):
    chosen = torch.tensor([-1e4, -1e-9], requires_grad=True)
    rejected = torch.tensor([-1e-9, -1e4], requires_grad=True)
    pairs = PairLogprobs(chosen, rejected, *(torch.zeros(2),) * 2, *(torch.ones(2),) * 2)
    loss = _loss(name, pairs)
    loss.sum().backward()
    assert all(x.isfinite().all() for x in (loss, chosen.grad, rejected.grad))


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
    ("name", "theirs"),
    [("sigmoid", "sigmoid"), ("robust", "robust"), ("hinge", "hinge"), ("ipo", "ipo")]
    + [("length_normalised", "sigmoid_norm")],
)
def test_agrees_with_trls_dpo_trainer(name: str, theirs: str):
    pairs = _random(3)
    expected = [_trl_dpo(theirs, pairs, i, 0.3, SMOOTHING.get(name, 0.0)) for i in range(5)]
    torch.testing.assert_close(_loss(name, pairs), torch.stack(expected))


def test_cdpo_ipo_sum_and_simpo_agree_with_trls_cpo_trainer():
    """CPO's functions see one log-prob a response: given log-ratios, they are DPO's."""
    from trl.experimental.cpo import CPOTrainer

    pairs = _random(4)
    ratios = pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected
    means = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    for name, theirs, (chosen, rejected) in (
        ("cdpo", "sigmoid", ratios),
        ("ipo_sum", "ipo", ratios),
        ("simpo", "simpo", means),
    ):
        trainer = SimpleNamespace(
            alpha=0.0, beta=0.3, loss_type=theirs, label_smoothing=SMOOTHING.get(name, 0.0), simpo_gamma=0.5
        )
        trainer.accelerator = SimpleNamespace(device="cpu")
        expected, *_ = CPOTrainer.cpo_loss(trainer, chosen, rejected)
        torch.testing.assert_close(_loss(name, pairs), expected)


def test_orpo_agrees_with_trls_trainer():
    from trl.experimental.orpo import ORPOTrainer

    pairs = _random(5)
    means = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    ratio, *_ = ORPOTrainer.odds_ratio_loss(trainer, *means)
    torch.testing.assert_close(_loss("orpo", pairs).float(), (-means[0]).float() - ratio)


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
    noisy = 0.9 * _loss("robust", pairs) + 0.1 * _loss("robust", flipped)
    torch.testing.assert_close(noisy, _loss("sigmoid", pairs))


def test_conservative_loss_is_least_where_the_policy_says_what_the_labels_do():
    """Labels right with 0.9: the best margin is logit(0.9) / beta."""
    best = math.log(9) / 0.3
    losses = [_loss("cdpo", _pair(best + step, 0), label_smoothing=0.1).item() for step in (-0.5, 0, 0.5)]
    assert losses[1] == min(losses)


@pytest.mark.parametrize("name", ["sigmoid", "simpo"])
def test_only_losses_that_need_a_reference_ask_for_it(name: str):
    pairs = _random()._replace(reference_chosen=None, reference_rejected=None)
    assert needs_reference(name) == (name == "sigmoid")
    if name == "simpo":
        assert _loss(name, pairs).isfinite().all()
    else:
        with pytest.raises(ValueError, match="reference"):
            _loss(name, pairs)


def test_reference_free_losses_never_read_it():
    free = [name for name in PREFERENCE_LOSSES if not needs_reference(name)]
    assert free == ["simpo", "orpo"]
    nan = torch.full((5,), math.nan)
    for name in free:
        pairs = _random()
        assert torch.equal(
            _loss(name, pairs._replace(reference_chosen=nan, reference_rejected=nan)), _loss(name, pairs)
        )


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("dpo", {}, "'dpo'.*sigmoid.*cdpo"),
        ("sigmoid", {"beta": 0.0}, r"beta.*0\.0"),
        ("sigmoid", {"beta": math.nan}, "beta.*nan"),
        ("cdpo", {"label_smoothing": 0.5}, r"label_smoothing.*0\.5.*\[0, 0\.5\)"),
        ("robust", {"label_smoothing": -0.1}, r"label_smoothing.*-0\.1"),
        ("sigmoid", {"label_smoothing": 0.1}, r"label_smoothing.*0\.1.*'sigmoid'.*'cdpo'.*'robust'"),
        ("sigmoid", {"gamma": 1.0}, r"gamma.*1\.0.*'simpo'"),
        ("simpo", {"gamma": -1.0}, r"gamma.*-1\.0"),
        ("sigmoid", {"sft_coef": -1.0}, r"sft_coef.*-1\.0"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(name: str, more: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        check_preference_settings(name, **{"beta": 0.1} | more)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        preference_loss(name, _random(), **{"beta": 0.1} | more)


def test_sigmoid_equals_a_reward_models_loss():
    pairs = _random()
    got = preference_loss("sigmoid", pairs, beta=0.3)
    torch.testing.assert_close(got.loss, -F.logsigmoid(got.reward_chosen - got.reward_rejected))
