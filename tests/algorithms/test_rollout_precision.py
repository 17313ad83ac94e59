"""Rollouts that another precision samples than trains, and rollouts that need no reference."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from ppo_parts import Logged, fit, plain_logprobs, policy, ppo

from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.algorithms.ppo import PPO
from align.algorithms.ppo_settings import KLConfig
from align.algorithms.rollout import StartedRollout
from align.objectives import GRPO

# On a processor without the instructions.
pytestmark = pytest.mark.filterwarnings("ignore:sampling in bfloat16")

GROUPS = {"estimator": GRPO(), "rollout": {"group_size": 2}}


class Rollouts(Callback):
    """The rollout of each iteration."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, stage):
        self.seen.append(stage._loader.rollout)


def decided():
    """A policy whose logits are far enough apart for bfloat16 to round them."""
    network = policy()
    with torch.no_grad():
        network.output_weight.mul_(12)
    return network


@pytest.fixture
def sampled(monkeypatch):
    """The sampler's responses of each iteration."""
    found, plain = [], StartedRollout.finish

    def keep(*args, **kwargs):
        found.append(plain(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(StartedRollout, "finish", keep)
    return found


@pytest.mark.parametrize("cap", [2.0, 1.0, None])
def test_a_bfloat16_rollout_by_hand(sampled, cap):
    """Old log-probs are float32; the gaps and the weights follow from them and the sampler's, token by token.

    The sampler's own are those of the network's forward pass in bfloat16, up to bfloat16's rounding of other products.
    """
    rollouts, logged = Rollouts(), Logged()
    stage = ppo(
        network=decided(), estimator=GRPO(), rollout={"group_size": 2, "dtype": "bfloat16", "importance_cap": cap}
    )
    fit(stage, max_epochs=1, callbacks=[rollouts, logged])
    (rollout,), (responses,), (metrics,) = rollouts.seen, sampled, logged.rows
    gaps = []
    for b, (prompt, length) in enumerate(zip(responses.prompt_lengths, responses.lengths, strict=True)):
        row, count = rollout.ids[b, :length], length - prompt
        ours, theirs = plain_logprobs(decided(), row, prompt), responses.logprobs[b, :count]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = plain_logprobs(decided(), row, prompt)
        torch.testing.assert_close(theirs, rounded, rtol=0, atol=0.1)
        torch.testing.assert_close(rollout.logprobs[b, :count], ours, rtol=1e-4, atol=1e-5)
        group = rollout.scores[b // 2 * 2 : b // 2 * 2 + 2]
        advantage = (rollout.scores[b] - group.mean()) / (group.std() + 1e-4)
        weights = torch.ones(count) if cap is None else (ours - theirs).exp().clamp(max=cap)
        torch.testing.assert_close(rollout.advantages[b, :count], advantage * weights, rtol=1e-3, atol=1e-4)
        assert not rollout.advantages[b, count:].any()
        gaps.append((ours - theirs).abs())
    assert torch.cat(gaps).max() > 1e-3, "bfloat16 rounds something here"
    assert metrics["rollout/logprob_gap"] == pytest.approx(torch.cat(gaps).max().item(), abs=1e-4)
    assert metrics["rollout/logprob_gap_mean"] == pytest.approx(torch.cat(gaps).mean().item(), abs=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_single_step_needs_no_pass_for_its_old_logprobs(sampled, accumulate):
    """Weights, gaps and ratio are those of a rollout that recomputes them, which a budget for the KL makes it do."""
    settings = {"update": {"epochs": 1, "minibatches": 1}, "rollout": {"group_size": 2, "dtype": "bfloat16"}}
    found = []
    for stop_kl in (None, 1e9):
        stage = ppo(network=decided(), estimator=GRPO(), kl=KLConfig(kl_coef=0.0, stop_kl=stop_kl), **settings)
        trainer = fit(stage, max_epochs=1, accumulate_grad_batches=accumulate, gradient_clip_val=None)
        found.append((trainer.callback_metrics, stage))
    (metrics, stage), (others, other) = found
    assert torch.equal(stage._loader.rollout.logprobs, sampled[0].logprobs)
    assert (other._loader.rollout.logprobs - sampled[1].logprobs).abs().max() > 1e-3
    for a, b in zip(stage.trained(), other.trained(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    assert metrics["train/ratio_max"] == 1
    if accumulate == 1:
        for name in ("rollout/logprob_gap", "rollout/logprob_gap_mean", "train/policy_loss"):
            assert metrics[name].item() == pytest.approx(others[name].item(), abs=1e-5)
    # A reward function, and GRPO: only the second reads its rows without a backward pass, twice.
    assert (stage.work["tokens_read"], other.work["tokens_read"]) == (0, 2 * sum(sampled[1].lengths))


def test_old_logprobs_are_recomputed_even_where_they_agree():
    """A fresh policy is so uniform that bfloat16 is within any tolerance; it won't stay so."""
    logged = Logged()
    stage = ppo(rollout={"dtype": "bfloat16", "logprob_tolerance": 10.0})
    fit(stage, callbacks=[logged])
    assert all("rollout/logprob_gap_mean" in row for row in logged.rows)
    state = stage.rollout_state() | {"recompute_logprobs": False}  # of a run that sampled in float32
    stage.load_rollout_state(state)
    assert stage.recompute_logprobs is True


def test_without_another_precision_there_are_no_weights():
    stages = [ppo(rollout={"importance_cap": cap}) for cap in (2.0, None)]
    logged = Logged()
    for stage in stages:
        fit(stage, callbacks=[logged])
    assert stages[0].recompute_logprobs is False
    assert "rollout/logprob_gap_mean" not in logged.rows[0]
    for a, b in zip(*(stage.trained() for stage in stages), strict=True):
        assert torch.equal(a, b)


def reads_of_the_reference(monkeypatch) -> list[PPO]:
    """One entry per pass of the reference over a rollout."""
    reads, plain = [], PPO._logprobs

    def counted(self, network, responses):
        if network is self.reference:
            reads.append(self)
        return plain(self, network, responses)

    monkeypatch.setattr(PPO, "_logprobs", counted)
    return reads


@pytest.mark.parametrize("settings", [{}, GROUPS], ids=["in-reward", "in-loss"])
def test_the_reference_reads_no_rollout_where_nothing_depends_on_the_kl(monkeypatch, settings):
    """Two iterations: none with neither coefficient nor budget, two with either; weights don't depend on the budget."""
    reads, counts, stages, logs = reads_of_the_reference(monkeypatch), [], [], []
    for kl in (KLConfig(kl_coef=0.0), KLConfig(kl_coef=0.0, stop_kl=1e9), KLConfig(kl_coef=0.1)):
        stages.append(ppo(kl=kl, **settings))
        logs.append(Logged())
        fit(stages[-1], callbacks=[logs[-1]])
        counts.append(len(reads))
    assert counts == [0, 2, 4]
    assert "rollout/kl" not in logs[0].rows[0]
    assert logs[0].rows[1] == {name: value for name, value in logs[1].rows[1].items() if name != "rollout/kl"}
    for a, b in zip(stages[0].trained(), stages[1].trained(), strict=True):
        assert torch.equal(a, b)
    # 8 rows each: the value model of PPO, and the reference.
    read = [stage.work["tokens_read"] for stage in stages[:2]]
    assert read == ([0, read[1]] if settings else [read[1] / 2, read[1]])


def test_policy_evaluation_measures_the_kl_that_rollouts_do_not(monkeypatch):
    reads = reads_of_the_reference(monkeypatch)
    stage = ppo(kl=KLConfig(kl_coef=0.0), policy_evaluation=PolicyEvaluationConfig(prompts=4, max_new_tokens=4))
    trainer = fit(stage, limit_val_batches=1.0)
    assert not reads
    assert trainer.callback_metrics["policy/kl"] > 0
