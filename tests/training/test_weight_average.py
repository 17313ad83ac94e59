"""The average of the weights: its values, where it is used, and resuming."""

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from naming import naming

from align.algorithms.pretrain import Pretrain
from align.callbacks.model_directory import ModelDirectory
from align.io.directory import load_network
from align.training.optimization import OptimizerConfig, ScheduleConfig
from align.training.weight_average import WeightAverage

sys.path.insert(0, str(Path(__file__).parents[1] / "algorithms"))
from test_language_model import CONFIG, Batches, fit, make_batch


class Watch(pl.Callback):
    """Weights after each step, and what validation and the end of the run saw."""

    def __init__(self) -> None:
        self.steps, self.validated = [], []

    def on_train_batch_end(self, trainer, stage, *_):
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0:
            self.steps.append(weights(stage))

    def on_validation_batch_start(self, trainer, stage, *_):
        self.validated.append(weights(stage))


def weights(stage):
    return {name: parameter.detach().clone() for name, parameter in stage.network.named_parameters()}


def run(folder: Path, average: WeightAverage, *, which="best", **settings):
    batches = [make_batch(2, 5, number) for number in range(4)]
    stage = Pretrain(CONFIG, init_seed=0, optimizer=OptimizerConfig(lr=0.05), schedule=ScheduleConfig(kind="constant"))
    watch = Watch()
    keeper = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, enable_version_counter=False)
    callbacks = [ModelDirectory(which), watch, average, keeper]
    settings = {"max_epochs": 2, "enable_checkpointing": True, "default_root_dir": folder} | settings
    fit(stage, Batches(batches, [make_batch(2, 5, 9)]), callbacks=callbacks, limit_val_batches=1.0, **settings)
    return stage, watch


def by_hand(steps, decay):
    """The average after each step, from the weights of seed 0."""
    start = Pretrain(CONFIG, init_seed=0)
    start.configure_model()
    average, found = weights(start), []
    for number, now in enumerate(steps, start=1):
        kept = min(decay, number / (number + 9))
        average = {name: kept * average[name] + (1 - kept) * now[name] for name in average}
        found.append(average)
    return found


def close(one, other):
    return all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_validation_and_the_model_directory_see_the_average(tmp_path, accumulate):
    stage, watch = run(tmp_path, WeightAverage(0.3), which="last", accumulate_grad_batches=accumulate)
    averages = by_hand(watch.steps, 0.3)
    per_epoch = 4 // accumulate
    assert len(watch.steps) == 2 * per_epoch
    assert close(watch.validated[0], averages[per_epoch - 1])
    assert close(watch.validated[1], averages[-1])
    written = {name: p for name, p in load_network(tmp_path / "model").named_parameters()}
    assert close(written, averages[-1])
    assert all(torch.equal(one, watch.steps[-1][name]) for name, one in weights(stage).items()), "the weights go on"
    manifest = json.loads((tmp_path / "model/align.json").read_text())
    assert manifest["average"] == {"decay": 0.3, "steps": 2 * per_epoch}


def test_the_best_model_is_the_average_that_was_validated(tmp_path):
    _, watch = run(tmp_path, WeightAverage(0.9))
    written = dict(load_network(tmp_path / "model").named_parameters())
    assert any(close(written, seen) for seen in watch.validated)


def test_a_resumed_run_has_the_same_average(tmp_path):
    whole, again = WeightAverage(0.5), WeightAverage(0.5)
    run(tmp_path, whole)
    run(tmp_path, again, ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    assert again.steps == whole.steps == 8
    assert all(torch.equal(again._average[name], whole._average[name]) for name in whole._average)


def test_off_unless_asked(tmp_path):
    average = WeightAverage()
    stage, watch = run(tmp_path, average)
    assert average.state_dict() == {}
    assert all(torch.equal(watch.validated[-1][name], one) for name, one in weights(stage).items())
    assert "average" not in json.loads((tmp_path / "model/align.json").read_text())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_impossible_decays(decay):
    with pytest.raises(ValueError, match=naming("average.decay", decay)):
        WeightAverage(decay)
