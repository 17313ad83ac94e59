"""examples/my_loss.py: a loss from the user's own file trains, is saved with the run, and resumes."""

import json
import math
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from naming import error_line

from align.cli import main
from align.objectives import PairLogprobs

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/algorithms"))
from dpo_pairs import World  # noqa: E402


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory with the example in it, where nothing but the current directory is searched for it."""
    shutil.copy(ROOT / "examples/my_loss.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    sys.modules.pop("my_loss", None)


def test_by_hand(folder, monkeypatch):
    """Log-ratios -1 and 1, beta 1/2, penalty 2: rewards (-1 - 2) / 2 and 1/2, margin -2: ln(1 + e^2)."""
    monkeypatch.syspath_prepend(folder)
    zero, one = torch.zeros(1), torch.ones(1)
    got = import_module("my_loss").DPOPositive(beta=0.5, penalty=2)(PairLogprobs(-one, one, zero, zero, one, one))
    assert got.loss.item() == pytest.approx(math.log(1 + math.exp(2)))
    assert (got.reward_chosen.item(), got.reward_rejected.item()) == (-1.5, 0.5)


def test_it_trains_from_the_command_line(folder, capsys):
    world = World(folder)
    words = ["fit", f"--config={ROOT}/recipes/tiny/dpo.yaml", "--run=run", "--trainer.default_root_dir=run/dpo"]
    words += ["--trainer.val_check_interval=1.0", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    words += [f"--model.init_args.init_from={world.start}", "--model.init_args.policy_evaluation.prompts=0"]
    words += [f"--data.init_args.tokenizer={folder}/tokenizer", "--data.init_args.context=40"]
    words += [f"--data.init_args.train=[{world.train}]", f"--data.init_args.validation=[{world.validation}]"]
    words += ["--data.init_args.batch_size=4", "--model.init_args.schedule.warmup_steps=0"]
    words += ["--model.init_args.loss=my_loss.DPOPositive", "--model.init_args.loss.init_args.penalty=3"]
    assert main([*words, "--trainer.max_steps=2"]) == 0, capsys.readouterr().err
    saved = yaml.safe_load((folder / "run/dpo/config.yaml").read_text())["model"]["init_args"]["loss"]
    assert saved == {"class_path": "my_loss.DPOPositive", "init_args": {"beta": 0.3, "penalty": 3.0}}
    manifest = json.loads((folder / "run/dpo/model/align.json").read_text())
    assert manifest["recipe"]["model"]["init_args"]["loss"] == saved
    assert main(["fit", "--config=run/dpo/config.yaml", "--ckpt_path=last", "--trainer.max_steps=3"]) == 0
    assert json.loads((folder / "run/dpo/model/align.json").read_text())["step"] == 3


def test_its_own_checks_reach_the_command_line(folder, capsys):
    words = ["fit", f"--config={ROOT}/recipes/tiny/dpo.yaml", "--model.init_args.loss=my_loss.DPOPositive"]
    assert main([*words, "--model.init_args.loss.init_args.penalty=-1"]) == 2
    error_line(capsys, "model.init_args.loss", "penalty", "-1.0")
