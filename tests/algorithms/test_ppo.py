"""The PPO stage through the Trainer: it learns a task with a known answer, and its counters mean what they say."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from ppo_parts import CONFIG, VOCAB, Logged, fit, policy, ppo

from align.algorithms.ppo_settings import KLConfig, RolloutConfig, ScoringConfig, UpdateConfig, ValueConfig
from align.objectives import (
    GAE,
    GRPO,
    RLOO,
    DrGRPO,
    MaxRL,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    SequenceClip,
    TokenClip,
)
from align.training.optimization import OptimizerConfig

BANDIT = {
    "optimizer": OptimizerConfig(lr=3e-2, weight_decay=0.0),
    "kl": KLConfig(kl_coef=0.0),
    "scoring": ScoringConfig(missing_eos_penalty=0.0),
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"value": ValueConfig(shared_trunk=True)},
        {"estimator": GRPO(), "rollout": {"episodes": 32, "group_size": 4}},
        {"estimator": DrGRPO(), "rollout": {"episodes": 32, "group_size": 4}},
        {"estimator": RLOO(), "rollout": {"episodes": 32, "group_size": 4}},
        {"estimator": ReinforcePlusPlus(), "rollout": {"episodes": 32}},
        {"estimator": ReinforcePlusPlusBaseline(), "rollout": {"episodes": 32, "group_size": 4}},
        {"estimator": MaxRL(), "rollout": {"episodes": 32, "group_size": 4}},
        {
            "estimator": GRPO(),
            "rollout": {"episodes": 32, "group_size": 4, "refills": 2},
            "update": {"target_kl": None, "surrogate": TokenClip(high=0.28)},
        },
        {
            "estimator": GRPO(),
            "rollout": {"episodes": 32, "group_size": 4},
            "update": {"target_kl": None, "surrogate": SequenceClip(low=0.1, high=0.2)},
        },
    ],
    ids=[
        "ppo",
        "shared",
        "grpo",
        "dr-grpo",
        "rloo",
        "reinforce++",
        "reinforce++-baseline",
        "maxrl",
        "dapo",
        "gspo",
    ],  # fmt: skip
)
def test_each_estimator_learns_to_say_the_wanted_token(settings):
    """A random policy says it once in 12 tokens; the reward is its share, so the best is 1."""
    logged = Logged()
    fit(
        ppo(**BANDIT | {"rollout": {"episodes": 32}, "update": {"target_kl": None}} | settings),
        max_epochs=9,
        callbacks=[logged],
    )
    first, last = logged.rows[0]["rollout/reward"], logged.rows[-1]["rollout/reward"]
    assert first < 0.2
    assert last > 0.75


def test_counters_mean_what_they_say():
    """2 epochs x 2 minibatches x 3 iterations are 12 optimizer steps, whatever the accumulation."""
    for accumulate in (1, 2):
        trainer = fit(ppo(), max_epochs=3, accumulate_grad_batches=accumulate)
        assert trainer.global_step == 12
        assert trainer.current_epoch == 3
        assert trainer.estimated_stepping_batches == 12
    assert fit(ppo(), max_steps=7).global_step == 7


def test_weights_move_and_the_reference_does_not():
    stage = ppo()
    fit(stage, max_epochs=1)
    fresh = policy()
    for name, weight in stage.reference.named_parameters():
        assert torch.equal(weight, fresh.get_parameter(name))
        assert not torch.equal(weight, stage.network.get_parameter(name)), name


@pytest.mark.parametrize(
    "settings", [{}, {"estimator": GRPO(), "rollout": {"group_size": 2, "refills": 1}}], ids=["ppo", "grpo"]
)
def test_every_metric_and_setting_is_documented(settings):
    docs = Path(__file__).parents[2] / "docs"
    glossary, page = (docs / "metrics.md").read_text(), (docs / "ppo.md").read_text()
    trainer = fit(ppo(gold="ppo_parts:share", **settings), max_epochs=2)
    names = [name for name in trainer.callback_metrics if name.startswith(("rollout/", "train/"))]
    assert len(names) >= 12
    for name in [*names, "rollout/logprob_gap"]:
        assert f"`{name}`" in glossary, name
        assert f"`{name}`" in page, name
    for group in (RolloutConfig, ScoringConfig, KLConfig, UpdateConfig, ValueConfig, GAE, GRPO):
        for field in fields(group):
            assert f"`{field.name}`" in page, field.name


class Gradients(Callback):
    """The policy's gradient of the first optimizer step, and how many tokens it saw."""

    def on_train_batch_end(self, trainer, stage, *_):
        if trainer.global_step == 1:
            self.first = {name: p.grad.clone() for name, p in stage.network.named_parameters()}
            self.tokens = int(stage._loader.rollout.mask.sum())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_dr_grpos_loss_is_divided_by_the_most_tokens_there_could_be(accumulate: int):
    """8 responses of at most 6 tokens: gradients are those of the mean over tokens, times tokens / 48."""
    found = []
    for estimator in (GRPO(scale_by_std=False), DrGRPO()):
        watch = Gradients()
        stage = ppo(estimator=estimator, rollout={"group_size": 2}, update={"epochs": 1, "minibatches": 1})
        fit(stage, max_steps=1, accumulate_grad_batches=accumulate, callbacks=[watch], gradient_clip_val=None)
        found.append(watch)
    mean, constant = found
    assert mean.tokens < 48
    for name, gradient in mean.first.items():
        torch.testing.assert_close(constant.first[name], gradient * mean.tokens / 48)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_padding_rows_are_neither_sampled_nor_trained(temperature):
    """20 rows, 12 ids: the sampler's log-probs are the trainer's, so they are used, and the other 8 rows stay."""
    config = replace(CONFIG, vocab_size=20, tied_embeddings=False)
    stage = ppo(network=policy(config=config), rollout={"temperature": temperature})
    logged = Logged()
    fit(stage, max_epochs=2, callbacks=[logged])
    assert stage.recompute_logprobs is False
    assert logged.rows[0]["rollout/logprob_gap"] < 1e-4
    assert abs(logged.rows[0]["rollout/kl"]) < 1e-4
    assert int(stage._loader.rollout.ids.max()) < VOCAB
    fresh, trained = policy(config=config).output_weight, stage.network.output_weight
    assert torch.equal(fresh[VOCAB:], trained[VOCAB:])
    assert not torch.equal(fresh[:VOCAB], trained[:VOCAB])
