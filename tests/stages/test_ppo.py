"""The PPO stage through the Trainer: it learns a task with a known answer, and its counters mean what they say."""

import pytest
import torch
from ppo_parts import Logged, fit, policy, ppo

from align.stages import OptimizerConfig
from align.stages.ppo_settings import KLConfig, ScoringConfig, ValueConfig

BANDIT = {
    "optimizer": OptimizerConfig(lr=3e-2, weight_decay=0.0),
    "kl": KLConfig(kl_coef=0.0),
    "scoring": ScoringConfig(missing_eos_penalty=0.0),
}


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "ppo"},
        {"algorithm": "ppo", "value": ValueConfig(shared_trunk=True)},
        {"algorithm": "grpo", "rollout": {"episodes": 32, "group_size": 4}},
        {"algorithm": "rloo", "rollout": {"episodes": 32, "group_size": 4}},
    ],
    ids=["ppo", "shared", "grpo", "rloo"],
)
def test_each_algorithm_learns_to_say_the_wanted_token(settings):
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
