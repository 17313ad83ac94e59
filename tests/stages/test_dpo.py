"""DPO trains on real preference data through the Trainer, and says what it does."""

import math

import pytest
import torch
from dpo_pairs import Log, World, fit, policy

from align.objectives import PREFERENCE_LOSSES
from align.stages import DPO, ProbeConfig
from align.stages.dpo import prompt_ids


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("dpo"))


NAMES = {"loss", "accuracy", "margin", "logprob_chosen", "logprob_rejected", "reward_chosen", "reward_rejected"}


def test_it_learns_which_answer_is_better(world):
    """The first loss is ln 2 at margin 0; then chosen answers gain on rejected ones, on held-out prompts too."""
    log = Log()
    trainer = fit(
        world.stage(probe=ProbeConfig(prompts=4, max_new_tokens=8)), world.data(), max_epochs=12, callbacks=[log]
    )
    first, last = log.steps[0], log.steps[-1]
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["train/margin"] == pytest.approx(0, abs=1e-4)
    assert last["train/loss"] < 0.4
    assert last["train/margin"] > 0.5
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["val/accuracy"] == 1
    assert metrics["val/loss"] < 0.5
    assert {f"{split}/{name}" for split in ("train", "val") for name in NAMES} < set(metrics)
    assert {"policy/kl", "policy/length", "policy/eos_rate", "policy/distinct"} < set(metrics)
    assert metrics["policy/kl"] > 0
    assert metrics["val/margin"] == pytest.approx(
        metrics["val/reward_chosen"] - metrics["val/reward_rejected"], abs=1e-4
    )
