"""A run that is taken up from any of its checkpoints ends in the same bits, with the same validations and rows."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from test_language_model import Batches, make_batch, pretrain
from test_resume import Rows

from align.callbacks.loggers import RunLog
from align.data.sampler import BatchOrder, ResumableLoader
from align.training import preemption
from align.training.checkpoint_files import global_step
from align.training.checkpointing import Checkpoints
from align.training.preemption import Preempted
from align.training.trainer_state import validating_in_fit


class Resumable(Batches):
    def __init__(self):
        super().__init__([], [make_batch(3, 5, 50), make_batch(2, 4, 51)])

    def train_dataloader(self):
        return ResumableLoader(Rows(), BatchOrder(rows=8, batch_size=1, seed=0))


class Unvalidated(Resumable):
    def val_dataloader(self):
        return []


class Seen(pl.Callback):
    """Steps of the validations, kept through a resume as ModelDirectory keeps its best."""

    def __init__(self):
        self.steps = []

    def state_dict(self):
        return {"steps": list(self.steps)}

    def load_state_dict(self, state):
        self.steps = list(state["steps"])

    def on_validation_end(self, trainer, stage):
        if validating_in_fit(trainer):
            self.steps.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def train(run: Path, ckpt_path: str | None = None, seen: Seen | None = None, **settings):
    pl.seed_everything(0, verbose=False)
    stage = pretrain()
    checkpoint, data = settings.pop("checkpoint", {}), settings.pop("data", Resumable)
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "logger": RunLog(run),
            "default_root_dir": run,
            "callbacks": [
                *([seen] if seen else []),
                Checkpoints(**{"every_n_train_steps": 1, "save_top_k": -1} | checkpoint),
            ],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
        }
        | settings
    )
    trainer.fit(stage, data(), ckpt_path=ckpt_path)
    return stage.network.output_weight.detach().clone()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 2, "val_check_interval": 3},
        {"max_epochs": 2, "accumulate_grad_batches": 3},
        # Every other validation stands between the two micro-batches of a step.
        {
            "max_epochs": 3,
            "accumulate_grad_batches": 2,
            "val_check_interval": 3,
            "checkpoint": {"monitor": "val/loss", "save_top_k": 9},
        },
        {"max_steps": 12, "max_epochs": -1, "val_check_interval": 4, "check_val_every_n_epoch": None},
        {"max_steps": 13, "max_epochs": -1, "val_check_interval": 5, "check_val_every_n_epoch": None},
    ],
    ids=["epochs", "accumulated", "validated between", "steps", "steps across epochs"],
)
def test_from_every_checkpoint(tmp_path: Path, settings):
    seen = Seen()
    whole = train(tmp_path / "whole", seen=seen, **settings)
    checkpoints = sorted((tmp_path / "whole/checkpoints").glob("epoch*.ckpt"))
    assert len(checkpoints) > 4
    for checkpoint in checkpoints:
        again, run = Seen(), tmp_path / checkpoint.stem
        resumed = train(run, str(checkpoint), again, **settings)
        if (run / "metrics.csv").exists():
            logged = rows(run)
            assert logged == rows(tmp_path / "whole")[-len(logged) :], checkpoint.name
        assert torch.equal(resumed, whole), checkpoint.name
        if int(checkpoint.stem.split("step=")[1]) < max(step for step, _ in seen.steps):
            assert again.steps == seen.steps, checkpoint.name


class Asked(Seen):
    """Somebody asks in a validation, before its second batch."""

    def __init__(self, validation: int):
        super().__init__()
        self.validation = validation

    def on_validation_batch_start(self, trainer, stage, batch, batch_idx, dataloader_idx=0):
        if len(self.steps) == self.validation and batch_idx == 1:
            preemption._Request.signal = 15


def test_without_validation_data_the_last_step_is_saved_all_the_same(tmp_path: Path):
    """A validation would follow, and save, if there were data for it."""
    train(tmp_path, data=Unvalidated, max_steps=3, val_check_interval=1)
    assert global_step(tmp_path / "checkpoints/last.ckpt") == 3


@pytest.fixture
def nobody_asks():
    preemption.forget()
    yield
    preemption.forget()


@pytest.mark.usefixtures("nobody_asks")
def test_asked_between_two_micro_batches_a_run_leaves_behind_their_step(tmp_path: Path):
    """Behind batch 3 of 8 there was one step, and the next has one of its two batches; it comes to an end first."""
    settings = {"max_epochs": 1, "accumulate_grad_batches": 2, "val_check_interval": 3}
    checkpoint = {"every_n_train_steps": 100, "save_top_k": 0}
    seen, again = Asked(9), Asked(9)
    whole = train(tmp_path / "whole", seen=seen, **settings, checkpoint=checkpoint)
    with pytest.raises(Preempted) as left:
        train(tmp_path / "run", seen=Asked(0), **settings, checkpoint=checkpoint)
    assert left.value.step == 2
    preemption.forget()
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert global_step(last) == 2
    assert torch.equal(train(tmp_path / "run", str(last), again, **settings, checkpoint=checkpoint), whole)
    assert [step for step, _ in seen.steps] == [1, 3]
    assert again.steps == seen.steps
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_the_best_of_a_validation_between_two_micro_batches(tmp_path: Path):
    """Validated with 1 and 3 steps behind it; what is kept is the checkpoint of the step that was under way."""
    settings = {"max_epochs": 1, "accumulate_grad_batches": 2, "val_check_interval": 3}
    checkpoint = {"every_n_train_steps": 100, "monitor": "val/loss", "save_top_k": 1}
    train(tmp_path, **settings, checkpoint=checkpoint)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    stored = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    (best,) = stored["callbacks"]["Checkpoints"]["best"]
    assert names == {best, "last.ckpt", "last-1.ckpt"}
    assert global_step(tmp_path / "checkpoints" / best) == int(best.removesuffix(".ckpt").split("step=")[1])


@pytest.mark.usefixtures("nobody_asks")
def test_a_run_that_owes_its_last_validation_ends_in_a_checkpoint_that_owes_none(tmp_path: Path):
    settings = {"max_epochs": 1, "val_check_interval": 4, "checkpoint": {"save_top_k": 0}}
    last, owed = tmp_path / "checkpoints/last.ckpt", []
    with pytest.raises(Preempted) as left:
        train(tmp_path, seen=Asked(1), **settings)
    assert left.value.step == 8
    owed.append(torch.load(last, weights_only=True)["callbacks"]["Checkpoints"]["repeat_validation"])
    preemption.forget()
    seen = Asked(9)
    train(tmp_path, str(last), seen, **settings)
    owed.append(torch.load(last, weights_only=True)["callbacks"]["Checkpoints"]["repeat_validation"])
    assert owed == [True, False]
    assert [step for step, _ in seen.steps] == [4, 8]


def test_ranks_ask_each_other_behind_each_step_and_each_validation(tmp_path: Path, monkeypatch):
    """8 steps and 2 validations, though a checkpoint is due in any case."""
    calls = []
    monkeypatch.setattr(preemption, "any_of", lambda trainer, *wishes: calls.append(wishes) or wishes)
    monkeypatch.setattr(preemption, "leave_validation", lambda trainer: None)
    train(tmp_path, max_epochs=1, val_check_interval=4)
    assert len(calls) == 8 + 2


@pytest.mark.parametrize(("first", "saved"), [("last.ckpt", 5), ("last-1.ckpt", -1)])
def test_what_the_first_rank_goes_on_from_counts(tmp_path: Path, first: str, saved: int):
    """This rank took last.ckpt to be whole: whether step 5 lies there already has to be the same on all ranks."""
    strategy = SimpleNamespace(broadcast=lambda path: tmp_path / "checkpoints" / first)
    here = tmp_path / "checkpoints/last.ckpt"
    trainer: Any = SimpleNamespace(strategy=strategy, ckpt_path=here, default_root_dir=tmp_path, global_step=5)
    trainer.is_global_zero = False
    checkpoints = Checkpoints()
    checkpoints.on_train_start(trainer, pretrain())
    assert checkpoints._saved_at == saved


class Leave(pl.Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Preempted


@pytest.mark.parametrize(("step", "settings", "left"), [(1, {"fast_dev_run": 2}, []), (0, {}, ["preempted.json"])])
def test_leaving_writes_nothing_in_a_trial_run_and_makes_its_folder(tmp_path: Path, step, settings, left):
    run = tmp_path / "not/yet"
    with pytest.raises(Preempted):
        train(run, seen=Leave(step), **settings | {"logger": False})
    assert [path.name for path in run.rglob("*")] == left
