"""Distillation through the Trainer: what a step minimises, and that a student comes to its teacher."""

from pathlib import Path

import pytest
import torch
from naming import naming
from ppo_parts import CONFIG as PPO_CONFIG
from ppo_parts import PromptModule, Prompts, policy
from ppo_parts import fit as fit_ppo
from test_language_model import CONFIG, Batches, fit, join, make_batch

from align.algorithms import distillation as on_data
from align.algorithms import on_policy_distillation as on_samples
from align.algorithms.distillation import Distill
from align.algorithms.on_policy_distillation import OnPolicyDistill
from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.algorithms.teacher import check_teacher
from align.model.gpt import GPT
from align.objectives import ForwardKL, JensenShannon, ReverseKL
from align.training.optimization import OptimizerConfig, ScheduleConfig

TRAINING = {"optimizer": OptimizerConfig(lr=2e-2, weight_decay=0.0), "schedule": ScheduleConfig(kind="constant")}


def network(seed, config=CONFIG, scale=1.0):
    made = GPT(config)
    made.initialise(seed)
    with torch.no_grad():
        made.model.embed_tokens.weight.mul_(scale)
    return made


@pytest.fixture
def teacher(monkeypatch):
    """A teacher that has something to say: its logits are large."""
    made = network(5, scale=40.0).requires_grad_(False).eval()
    monkeypatch.setattr(on_data, "load_start", lambda *args: made)
    return made


def distill(**settings):
    return Distill(network=network(0), teacher="teacher", **TRAINING | settings)


def test_the_loss_is_the_mean_divergence_of_the_counted_tokens(teacher):
    """KL(teacher || student) of plain softmaxes, over a batch in which 8 of 20 tokens count."""
    batch = join(make_batch(1, 5, 1), make_batch(3, 1, 2))
    stage = distill()
    trainer = fit(stage, Batches([batch], [batch]), limit_val_batches=1.0, max_steps=1)
    logits = network(0)(batch.ids[:, :-1])[batch.mask[:, 1:]]
    p = teacher(batch.ids[:, :-1])[batch.mask[:, 1:]].softmax(-1)
    expected = (p * (p.log() - logits.log_softmax(-1))).sum(-1).mean()
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert 0 < trainer.callback_metrics["val/divergence"].item() < expected.item()
    assert "val/loss" in trainer.callback_metrics


def test_accumulation_gives_the_gradient_of_one_big_batch(teacher):
    micro = [make_batch(2, 5, 1), make_batch(2, 1, 2), make_batch(2, 3, 3)]
    small, big = distill(divergence=JensenShannon()), distill(divergence=JensenShannon())
    fit(small, Batches(micro), accumulate_grad_batches=3)
    fit(big, Batches([join(*micro)]))
    for a, b in zip(small.network.parameters(), big.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JensenShannon()], ids=str)
def test_a_student_comes_to_its_teacher(teacher, divergence):
    batch = make_batch(4, 5, 0)
    before = [p.clone() for p in teacher.parameters()]
    stage = distill(divergence=divergence)
    trainer = fit(stage, Batches([batch] * 60, [batch]), limit_val_batches=1.0, val_check_interval=30)
    assert trainer.callback_metrics["val/divergence"].item() < 0.05
    assert all(torch.equal(old, new) for old, new in zip(before, teacher.parameters(), strict=True))
    assert not any(name.startswith("teacher") for name in trainer.strategy.optimizers[0].state_dict())


def on_policy(**settings):
    evaluation = PolicyEvaluationConfig(prompts=8, max_new_tokens=6)
    settings = {"policy_evaluation": evaluation, "max_new_tokens": 6} | TRAINING | settings
    return OnPolicyDistill(network=policy(), teacher="teacher", **settings)


class PlainPrompts(PromptModule):
    def train_dataloader(self):
        return Prompts(self.lengths, self.batch_size)


def fit_prompts(stage, **settings):
    return fit_ppo(stage, data=PlainPrompts(), **settings)


@pytest.fixture
def sampling_teacher(monkeypatch):
    made = network(5, PPO_CONFIG, scale=40.0).requires_grad_(False).eval()
    monkeypatch.setattr(on_samples, "load_start", lambda *args: made)
    monkeypatch.setattr(on_samples, "check_networks", lambda *args: None)
    return made


@pytest.mark.parametrize("divergence", [ReverseKL(), ForwardKL()], ids=str)
def test_a_student_comes_to_its_teacher_on_its_own_samples(sampling_teacher, divergence):
    kl = []

    class Evaluated(OnPolicyDistill):
        def on_validation_epoch_end(self):
            kl.append(self.policy_evaluation.compute()["kl"].item())
            super().on_validation_epoch_end()

    stage = on_policy(divergence=divergence)
    stage.__class__ = Evaluated
    fit_prompts(stage, max_epochs=12, limit_val_batches=1.0, check_val_every_n_epoch=6)
    assert kl[-1] < 0.5
    assert kl[-1] < kl[0]


def test_a_resumed_run_samples_what_an_uninterrupted_one_does(sampling_teacher, tmp_path: Path):
    from test_ppo_resume import saving, weights

    whole = on_policy()
    fit_prompts(whole, max_epochs=2, callbacks=[saving(tmp_path)], enable_checkpointing=True)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == 6
    for checkpoint in checkpoints[1:-1:2]:
        resumed = on_policy()
        fit_prompts(resumed, max_epochs=2, ckpt_path=str(checkpoint))
        for name, tensor in weights(resumed).items():
            assert torch.equal(tensor, whole.state_dict()[name]), (checkpoint.name, name)


def test_a_teacher_of_another_tokenizer_is_refused(monkeypatch):
    class Loaded:
        fingerprint = "a" * 64

    class Data:
        fingerprint = "b" * 64

    monkeypatch.setattr("align.algorithms.teacher.Tokenizer.load", lambda path: Loaded)
    monkeypatch.setattr("align.algorithms.teacher.locate", lambda source: source)
    with pytest.raises(ValueError, match=naming("teacher", "elsewhere", "aaaaaaaaaaaa", "bbbbbbbbbbbb")):
        check_teacher("elsewhere", Data)
    check_teacher("elsewhere", Loaded)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Distill(network=network(0)), naming("Distill", "teacher")),
        (lambda: OnPolicyDistill(network=policy()), naming("OnPolicyDistill", "teacher")),
        (lambda: distill(temperature=0.0), naming("temperature", 0.0)),
        (lambda: on_policy(max_new_tokens=0), naming("max_new_tokens", 0)),
        (lambda: Distill(teacher="t"), naming("Distill", "init_from")),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
