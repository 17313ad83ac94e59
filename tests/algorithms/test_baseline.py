"""Validation before training, and the log of the first step."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from test_language_model import CONFIG, Batches, fit, make_batch, pretrain
from test_resume import Resumable

from align.algorithms.pretrain import Pretrain
from align.callbacks.baseline import Baseline, Validated
from align.callbacks.loggers import RunLog
from align.callbacks.model_directory import ModelDirectory
from align.io.manifest import read_manifest
from align.training.lightning_internals import repeat_validation

DATA = Batches([make_batch(2, 5, seed) for seed in range(4)], [make_batch(2, 5, seed) for seed in (7, 8)])


def rows(run: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of every row of metrics.csv that has a metric."""
    with (run / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def train(run: Path, baseline: Baseline, data=DATA, **settings):
    stage = pretrain()
    extra = settings.pop("callbacks", [])
    fit(
        stage,
        data,
        callbacks=[baseline, *extra],
        logger=RunLog(run),
        limit_val_batches=1.0,
        log_every_n_steps=10,
        **settings,
    )
    return stage


def test_the_untrained_network_is_validated_at_step_0(tmp_path: Path):
    """The first row of val/loss is the mean over both batches before any step; the last is after 4 steps."""
    untrained = pretrain()
    untrained.configure_model()
    losses = [untrained.loss(batch) for batch in DATA.val]
    expected = sum(float(loss.nll) for loss in losses) / sum(int(loss.tokens) for loss in losses)
    baseline = Baseline()
    train(tmp_path, baseline)
    (first, before), (last, after) = rows(tmp_path, "val/loss")
    assert (first, last) == (0, 3)  # Lightning numbers a validation by the batch that it follows
    assert before == pytest.approx(expected, rel=1e-5)
    assert baseline.before == Validated(0, {"val/loss": pytest.approx(before)})
    assert baseline.after == Validated(4, {"val/loss": pytest.approx(after)})


def test_the_first_step_is_logged_though_the_interval_is_longer(tmp_path: Path):
    """4 steps and an interval of 10: the only row is that of step 0, whose loss is that of the first batch."""
    untrained = pretrain()
    untrained.configure_model()
    loss = untrained.loss(DATA.train[0])
    train(tmp_path, Baseline())
    assert rows(tmp_path, "train/loss") == [(0, pytest.approx(float(loss.nll / loss.tokens), rel=1e-5))]


def test_validating_first_changes_no_weight(tmp_path: Path):
    with_it, without = (train(tmp_path / str(on), Baseline(validate=on)) for on in (True, False))
    assert [step for step, _ in rows(tmp_path / "False", "val/loss")] == [3]
    for a, b in zip(with_it.network.parameters(), without.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_resumed_run_keeps_its_baseline_and_does_not_validate_again(tmp_path: Path):
    def data():
        resumable = Resumable()
        resumable.val = DATA.val
        return resumable

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    whole, resumed = Baseline(), Baseline()
    expected = train(tmp_path / "whole", whole, data(), callbacks=[save], enable_checkpointing=True)
    got = train(tmp_path / "resumed", resumed, data(), ckpt_path=str(tmp_path / "step=2.ckpt"))
    assert [step for step, _ in rows(tmp_path / "whole", "val/loss")] == [0, 3]
    assert [step for step, _ in rows(tmp_path / "resumed", "val/loss")] == [3]
    assert rows(tmp_path / "resumed", "train/loss") == []
    assert resumed.before == whole.before
    assert resumed.before is not None
    for a, b in zip(got.network.parameters(), expected.network.parameters(), strict=True):
        assert torch.equal(a, b)


ENDINGS = {
    "max_steps within an epoch": ({"max_steps": 3}, 3),
    "an interval that doesn't divide the epoch": ({"val_check_interval": 3}, 4),
    "an epoch without validation": ({"max_epochs": 2, "check_val_every_n_epoch": 3}, 8),
}


@pytest.mark.parametrize(("settings", "last"), ENDINGS.values(), ids=ENDINGS.keys())
def test_the_last_step_is_validated_whatever_the_schedule(tmp_path: Path, settings, last: int):
    """Four batches per epoch, one step each; Lightning alone would leave the final network unmeasured."""
    baseline, directory = Baseline(), ModelDirectory(which="last")
    stage = train(tmp_path, baseline, callbacks=[directory], default_root_dir=tmp_path, **settings)
    losses = [stage.loss(batch) for batch in DATA.val]
    expected = sum(float(loss.nll) for loss in losses) / sum(int(loss.tokens) for loss in losses)
    assert baseline.after == Validated(last, {"val/loss": pytest.approx(expected, rel=1e-5)})
    assert rows(tmp_path, "val/loss")[-1] == (last - 1, pytest.approx(expected, rel=1e-5))
    manifest = read_manifest(tmp_path / "model")
    assert manifest["step"] == last
    assert manifest["metrics"]["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_metrics_of_other_weights_are_not_in_the_manifest(tmp_path: Path):
    """Without a validation after step 3, val/loss is that of step 2, and train/loss is the only metric of the model."""
    directory = ModelDirectory(which="last")
    settings = {"max_steps": 3, "val_check_interval": 2, "default_root_dir": tmp_path}
    train(tmp_path, Baseline(validate=False), callbacks=[directory], **settings)
    assert [step for step, _ in rows(tmp_path, "val/loss")] == [1]
    metrics = read_manifest(tmp_path / "model")["metrics"]
    assert "train/loss" in metrics
    assert not [name for name in metrics if name.startswith("val/")]


class Kill(pl.Callback):
    """Saves a checkpoint within the validation after a step, and ends the run there."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == self.step and batch_idx == 1:
            trainer.save_checkpoint(self.path)
            raise InterruptedError


class Repeat(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        repeat_validation(trainer)


def test_the_last_validation_is_repeated_after_a_preemption(tmp_path: Path):
    """Two epochs of four steps, and a schedule that validates neither."""
    schedule = {"max_epochs": 2, "check_val_every_n_epoch": 3}
    path = tmp_path / "a.ckpt"
    with pytest.raises(InterruptedError):
        train(tmp_path / "first", Baseline(), callbacks=[Kill(8, path)], **schedule)
    baseline = Baseline()
    train(tmp_path / "second", baseline, callbacks=[Repeat()], ckpt_path=str(path), **schedule)
    assert baseline.after is not None
    assert baseline.after.step == 8


def test_an_unset_rate_is_chosen_and_recorded(tmp_path: Path):
    """The law of PRETRAINING for the size of the new network; the warm-up is a tenth of 20 steps."""
    stage = Pretrain(CONFIG, init_seed=0)
    data = Batches([make_batch(2, 5, seed) for seed in range(20)])
    fit(stage, data, logger=RunLog(tmp_path))
    recorded = yaml.safe_load((tmp_path / "hparams.yaml").read_text())
    size = stage.network.num_parameters()
    assert recorded == {"optimizer.lr": float(f"{6e-4 * (125e6 / size) ** 0.32:.1e}"), "schedule.warmup_steps": 2}
    assert stage.optimizer_config.lr == recorded["optimizer.lr"]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_run_that_makes_the_model_worse_is_said_to(tmp_path: Path, recwarn, monkeypatch, sign: int):
    """A higher val/loss is worse; the rate of the stage, 0.1, is named."""
    from align.callbacks import baseline

    monkeypatch.setattr(baseline, "_BETTER", {"val/loss": sign})
    measured = Baseline()
    train(tmp_path, measured)
    assert measured.before is not None
    assert measured.after is not None
    improves = sign * (measured.after.metrics["val/loss"] - measured.before.metrics["val/loss"]) >= 0
    found = [str(warning.message) for warning in recwarn if "val/loss is worse" in str(warning.message)]
    assert bool(found) == (not improves)
    assert all("0.1" in line for line in found)


@pytest.mark.parametrize(("after", "warns"), [(2.219, False), (2.24, True), (1.0, False)])
def test_a_change_of_a_percent_is_no_reason_to_warn(tmp_path: Path, recwarn, monkeypatch, after: float, warns: bool):
    """2.2 + 1% = 2.222."""
    baseline = Baseline()
    monkeypatch.setattr(Baseline, "on_validation_end", lambda *_: None)
    baseline.before, baseline.after = Validated(0, {"val/loss": 2.2}), Validated(4, {"val/loss": after})
    train(tmp_path, baseline)
    assert any("val/loss is worse" in str(warning.message) for warning in recwarn) == warns
