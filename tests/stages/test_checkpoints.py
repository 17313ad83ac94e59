"""A run that is taken up from any of its checkpoints ends in the same bits, with the same validations and rows."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from test_language_model import Batches, make_batch, pretrain
from test_resume import Rows

from align.callbacks import Checkpoints, RunLog
from align.callbacks.samples import validating_in_fit
from align.data.sampler import BatchOrder, ResumableLoader


class Resumable(Batches):
    def __init__(self):
        super().__init__([], [make_batch(3, 5, 50), make_batch(2, 4, 51)])

    def train_dataloader(self):
        return ResumableLoader(Rows(), BatchOrder(rows=8, batch_size=1, seed=0))


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
    checkpoint = settings.pop("checkpoint", {})
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
    trainer.fit(stage, Resumable(), ckpt_path=ckpt_path)
    return stage.network.output_weight.detach().clone()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 2, "val_check_interval": 3},
        {"max_epochs": 2, "accumulate_grad_batches": 3},
        {"max_steps": 12, "max_epochs": -1, "val_check_interval": 4, "check_val_every_n_epoch": None},
        {"max_steps": 13, "max_epochs": -1, "val_check_interval": 5, "check_val_every_n_epoch": None},
    ],
    ids=["epochs", "accumulated", "steps", "steps across epochs"],
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
