"""A PPO run that is stopped anywhere and taken up again ends in the same bits."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ppo_parts import Logged, fit, ppo

from align.algorithms.ppo_settings import KLConfig, ScoringConfig, ValueConfig
from align.objectives import GRPO
from align.training.optimization import OptimizerConfig, ScheduleConfig

ITERATIONS = 3


def everything(**settings):
    """A stage with all that has a state: steered KL, running statistics, schedule, value model, warm-up."""
    return ppo(
        **{
            "optimizer": OptimizerConfig(lr=1e-2),
            "schedule": ScheduleConfig(kind="cosine", warmup_steps=2),
            "kl": KLConfig(kl_coef=0.1, kl_target=0.5, kl_horizon=16),
            "scoring": ScoringConfig(normalise="running", reward_clip=2.0),
            "value": ValueConfig(lr_factor=2.0, warmup_iterations=1),
        }
        | settings
    )


def saving(folder, **settings):
    return ModelCheckpoint(
        folder,
        **{"filename": "{epoch}-{step}", "every_n_train_steps": 1, "save_top_k": -1, "save_on_train_epoch_end": False}
        | settings,
    )


def weights(stage):
    return {name: tensor.clone() for name, tensor in stage.state_dict().items()}


def assert_same(stage, other, logged, whole):
    for name, tensor in weights(stage).items():
        assert torch.equal(tensor, other[name]), name
    assert logged.rows[-1] == whole.rows[-1]


NO_REFERENCE = {"kl": KLConfig(kl_coef=0.0), "rollout": {"dtype": "bfloat16"}}


@pytest.mark.filterwarnings("ignore:sampling in bfloat16")  # on a processor without the instructions
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{}, {"update": {"target_kl": 1e-3}}, NO_REFERENCE],
    ids=["whole", "ended-early", "bfloat16-without-reference"],
)
def test_resumed_after_every_optimizer_step(tmp_path: Path, accumulate: int, settings):
    """Checkpoints after each step, the last of an iteration and the one that ends it early included."""
    whole = Logged()
    stage = everything(**settings)
    trainer = fit(
        stage, max_epochs=ITERATIONS, accumulate_grad_batches=accumulate, callbacks=[whole, saving(tmp_path)],
        enable_checkpointing=True,
    )  # fmt: skip
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == trainer.global_step
    assert (trainer.global_step < 4 * ITERATIONS) == ("update" in settings)
    for checkpoint in checkpoints:
        logged, resumed = Logged(), everything(**settings)
        again = fit(
            resumed, max_epochs=ITERATIONS, accumulate_grad_batches=accumulate, callbacks=[logged],
            ckpt_path=str(checkpoint),
        )  # fmt: skip
        assert again.global_step == trainer.global_step, checkpoint.name
        if again.global_step > int(checkpoint.stem.split("step=")[1]):
            assert_same(resumed, weights(stage), logged, whole)


@pytest.mark.parametrize("settings", [{}, {"update": {"target_kl": 1e-3}}], ids=["whole", "ended-early"])
def test_resumed_at_an_iterations_end(tmp_path: Path, settings):
    """Checkpoints where the epoch ends, after its validation."""
    whole = Logged()
    stage = everything(**settings)
    save = saving(tmp_path, every_n_train_steps=None, every_n_epochs=1, save_on_train_epoch_end=True)
    trainer = fit(
        stage, max_epochs=ITERATIONS, callbacks=[whole, save], limit_val_batches=1.0, enable_checkpointing=True
    )
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == ITERATIONS
    for checkpoint in checkpoints[:-1]:
        logged, resumed = Logged(), everything(**settings)
        again = fit(
            resumed, max_epochs=ITERATIONS, callbacks=[logged], ckpt_path=str(checkpoint), limit_val_batches=1.0
        )
        assert again.global_step == trainer.global_step
        assert_same(resumed, weights(stage), logged, whole)


def test_a_kl_in_the_loss_keeps_its_coefficient_within_an_iteration(tmp_path: Path):
    """The controller has moved on to the next iteration's by the time of the checkpoint."""

    def stage():
        kl = KLConfig(kl_coef=0.5, kl_target=0.5, kl_horizon=16)
        return ppo(estimator=GRPO(), rollout={"group_size": 2}, kl=kl, optimizer=OptimizerConfig(lr=1e-2))

    whole = stage()
    fit(whole, max_epochs=1, callbacks=[saving(tmp_path)], enable_checkpointing=True)
    assert whole._loader.rollout.kl_coef == 0.5
    assert whole.controller.value != 0.5
    first = min(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.split("step=")[1]))
    resumed = stage()
    fit(resumed, max_epochs=1, ckpt_path=str(first))
    assert resumed._loader.rollout.kl_coef == 0.5
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_checkpoints_hold_no_frozen_network_and_load_without_unpickling(tmp_path: Path):
    fit(everything(), max_epochs=1, callbacks=[saving(tmp_path)], enable_checkpointing=True)
    for path in tmp_path.glob("*.ckpt"):
        state = torch.load(path, weights_only=True)
        assert not [name for name in state["state_dict"] if name.startswith(("reference", "reward", "gold"))]
        assert [name for name in state["state_dict"] if name.startswith("value.")]


def test_other_settings_in_mid_iteration_are_refused(tmp_path: Path):
    fit(everything(), max_epochs=1, callbacks=[saving(tmp_path)], enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"epochs\D*2\b.*\b3\b"):
        fit(everything(update={"epochs": 3}), max_epochs=1, ckpt_path=str(tmp_path / "epoch=0-step=2.ckpt"))
