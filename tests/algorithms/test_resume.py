"""A stage whose schedule asked for the number of steps resumes in its data all the same."""

import sys
from importlib import import_module

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from naming import names, naming
from test_language_model import CONFIG, Batches, join, make_batch, pretrain

from align.algorithms.pretrain import Pretrain
from align.algorithms.starting_points import content_of
from align.data.sampler import BatchOrder, ResumableLoader
from align.io.directory import save_network
from align.io.manifest import write_manifest
from align.rewards.functions import SandboxGold
from align.training.optimization import OptimizerConfig, ScheduleConfig


class Rows:
    rows = [make_batch(1, 5, i) for i in range(8)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, chosen):
        return join(*(self.rows[i] for i in chosen))


class Resumable(Batches):
    def __init__(self):
        super().__init__([])

    def train_dataloader(self):
        return ResumableLoader(Rows(), BatchOrder(rows=8, batch_size=2, seed=0))


def test_epochs_resume_to_the_same_bits_from_every_step(tmp_path):
    """Two epochs of 4 steps. With max_epochs configure_optimizers makes the loader before the checkpoint is read."""

    def run(ckpt_path=None, **settings):
        pl.seed_everything(0, verbose=False)
        stage = pretrain()
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=2,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            **settings,
        )
        trainer.fit(stage, Resumable(), ckpt_path=ckpt_path)
        return stage.network.output_weight.detach().clone()

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(callbacks=[save])
    for step in range(1, 8):
        resumed = run(str(tmp_path / f"step={step}.ckpt"), enable_checkpointing=False)
        assert torch.equal(resumed, whole), step


def test_the_recipe_decides_the_rates_of_a_resumed_run(tmp_path, recwarn):
    """Two of four steps at 0.1, then 0.001 and a decay of 0.2: what the optimizer and the schedule have afterwards."""

    def run(lr, decay, ckpt_path=None, *, betas=(0.9, 0.95), eps=1e-8, **settings):
        pl.seed_everything(0, verbose=False)
        stage = Pretrain(
            CONFIG,
            init_seed=0,
            optimizer=OptimizerConfig(lr=lr, weight_decay=decay, betas=betas, eps=eps),
            schedule=ScheduleConfig(kind="constant", warmup_steps=0),
        )
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
        trainer = pl.Trainer(accelerator="cpu", max_steps=4, use_distributed_sampler=False, **quiet, **settings)
        trainer.fit(stage, Resumable(), ckpt_path=ckpt_path)
        return trainer

    run(0.1, 0.0, callbacks=[ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)])
    same = run(0.1, 0.0, str(tmp_path / "step=2.ckpt"), enable_checkpointing=False)
    assert same.optimizers[0].param_groups[0]["lr"] == 0.1
    assert not [one for one in recwarn if "instead of the checkpoint's" in str(one.message)]
    others = {"betas": (0.5, 0.6), "eps": 1e-6, "enable_checkpointing": False}
    lower = run(0.001, 0.2, str(tmp_path / "step=2.ckpt"), **others)
    matrices, vectors = lower.optimizers[0].param_groups
    assert (matrices["lr"], matrices["weight_decay"], vectors["weight_decay"]) == (0.001, 0.2, 0.0)
    assert (matrices["betas"], matrices["eps"], vectors["eps"]) == ((0.5, 0.6), 1e-6, 1e-6)
    assert lower.lr_scheduler_configs[0].scheduler.base_lrs == [0.001, 0.001]
    (told,) = (str(one.message) for one in recwarn if "instead of the checkpoint's" in str(one.message))
    assert names(told, "optimizer.lr 0.1 -> 0.001", "optimizer.betas 0.9 0.95 -> 0.5 0.6", "step 2 0.1 -> 0.001")


class Other(Pretrain):
    """Another stage with the same network."""


def test_a_trainer_refuses_another_stage_and_somebody_elses_checkpoint(tmp_path):
    """Also without settings to compare, in Python."""

    def run(stage, ckpt_path=None, **settings):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
        trainer = pl.Trainer(accelerator="cpu", max_steps=2, use_distributed_sampler=False, **quiet, **settings)
        trainer.fit(stage, Resumable(), ckpt_path=ckpt_path)

    file = tmp_path / "step=1.ckpt"
    run(pretrain(), callbacks=[ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)])
    with pytest.raises(ValueError, match=naming(file, "Pretrain", "Other")):
        run(Other(CONFIG, init_seed=0), str(file), enable_checkpointing=False)
    stored = torch.load(file, weights_only=True)
    del stored["stage"]
    torch.save(stored, file)
    with pytest.raises(ValueError, match=naming(file, "align")):
        run(pretrain(), str(file), enable_checkpointing=False)


def test_what_a_source_stands_for(tmp_path):
    """A directory its weights and normalisation, wherever it is; a reward by name its name, an object its class."""
    network = pretrain()
    network.configure_model()
    for name in ("one", "two"):
        save_network(network.network, tmp_path / name, bos_id=None, eos_ids=(), pad_id=None)
    one, two = (content_of(str(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    write_manifest(tmp_path / "two", {"stage": "reward", "reward_mean": 0.5, "reward_std": 2.0})
    assert content_of(str(tmp_path / "two")) != one
    assert content_of("sandbox") == "sandbox"
    assert content_of("align.sandbox:gold_reward") == "align.sandbox:gold_reward"
    assert content_of(SandboxGold()) == "align.rewards.functions.SandboxGold"


def test_a_reward_of_the_users_own_stands_for_its_code(tmp_path, monkeypatch):
    """The module is edited and imported again."""
    monkeypatch.syspath_prepend(tmp_path)
    found = {"function": [], "class": []}
    for number in (1, 2, 1):
        (tmp_path / "judged.py").write_text(
            "from align.rewards import Reward\n"
            f"def same(prompts, responses):\n    return [{number}.0] * len(responses)\n"
            "class Same(Reward):\n    score = staticmethod(same)\n"
        )
        found["function"].append(content_of("judged:same"))
        found["class"].append(content_of(vars(import_module("judged"))["Same"]()))
        del sys.modules["judged"]
    for before, edited, restored in found.values():
        assert before == restored != edited
