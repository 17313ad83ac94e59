"""SIGKILL in the middle of pretraining: `align run` resumes, and the weights are those of an uninterrupted run."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from align.cli import main

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline up to pretraining, made small: 60 steps with dropout, a checkpoint every 7."""
    folder = tmp_path_factory.mktemp("recipes") / "kill"
    folder.mkdir()
    pipeline = yaml.safe_load((ROOT / "recipes/tiny/pipeline.yaml").read_text())
    stages = {name: pipeline["stages"][name] for name in ("data", "tokenizer", "pretrain")}
    stages["data"]["arguments"] |= {"pretrain_documents": 400, "pretrain_val_documents": 20, "prompts": 5}
    stages["data"]["arguments"] |= {
        "sft_chats": 5,
        "sft_val_chats": 5,
        "preference_pairs": 5,
        "preference_val_pairs": 5,
    }
    recipe = yaml.safe_load((ROOT / "recipes/tiny/pretrain.yaml").read_text())
    recipe["trainer"] |= {"max_steps": STEPS, "max_epochs": -1, "val_check_interval": 20, "enable_progress_bar": False}
    recipe["trainer"] |= {"check_val_every_n_epoch": None}
    recipe["checkpoint"] = {"every_n_train_steps": 7}
    recipe["model"]["init_args"]["gpt"] |= {"layers": 2, "heads": 2, "width": 32, "dropout": 0.1}
    recipe["model"]["init_args"]["schedule"] |= {"warmup_steps": 5}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "align", "run", str(folder), "--out", str(out), "--json"]
    # Threads are part of what decides a run's bits: all tries have the same, whatever the machine gives.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(folder: Path, out: Path) -> dict[str, dict]:
    process = start(folder, out)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr[-2000:]
    assert "different numerics" not in stderr, stderr[-2000:]
    return {line["name"]: line for line in map(json.loads, stdout.splitlines())}


def weights_that_differ(one: Path, other: Path) -> dict[str, float]:
    """Largest difference of each tensor that is not the same to the bit."""
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    return {
        name: float((left[name] - right[name]).abs().max()) for name in left if not torch.equal(left[name], right[name])
    }


def last_step(out: Path) -> int:
    file = out / "pretrain/metrics.csv"
    if not file.is_file():
        return -1
    with file.open(newline="") as stream:
        return max((int(row["step"]) for row in csv.DictReader(stream) if row["step"]), default=-1)


@pytest.mark.slow
def test_killed_and_resumed_ends_in_the_same_bits(folder: Path, tmp_path: Path):
    """Killed twice: at about step 20 (between checkpoints at 14 and 21) and about step 40."""
    whole = finish(folder, tmp_path / "whole")
    assert whole["pretrain"]["why"] == "never run"
    out = tmp_path / "killed"
    for moment in (19, 39):
        process = start(folder, out)
        deadline = time.monotonic() + 200
        while last_step(out) < moment and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = finish(folder, out)
    assert [resumed[name]["status"] for name in ("data", "tokenizer", "pretrain")] == [
        "up-to-date",
        "up-to-date",
        "done",
    ]
    assert resumed["pretrain"]["why"] == "half done: resuming"
    one, other = (tmp_path / run / "pretrain/model" for run in ("whole", "killed"))
    for name in ("tokenizer.json", "config.json"):
        assert (one / name).read_text() == (other / name).read_text(), name
    assert weights_that_differ(one / "model.safetensors", other / "model.safetensors") == {}
    steps = [
        [row["step"] for row in csv.DictReader((tmp_path / run / "pretrain/metrics.csv").open()) if row["train/loss"]]
        for run in ("whole", "killed")
    ]
    assert steps[0] == steps[1]
    assert {stage["status"] for stage in finish(folder, out).values()} == {"up-to-date"}


@pytest.mark.slow
def test_a_changed_recipe_does_not_resume_from_the_old_one(folder: Path, tmp_path: Path):
    """A half-done stage whose recipe changed starts again: its checkpoint is of another run."""
    recipe = folder / "pretrain.yaml"
    text = recipe.read_text()
    process = start(folder, tmp_path)
    while last_step(tmp_path) < 9 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    try:
        recipe.write_text(text.replace(f"max_steps: {STEPS}", "max_steps: 8"))
        assert main(["run", str(folder), "--out", str(tmp_path), "--json"]) == 0
    finally:
        recipe.write_text(text)
    assert last_step(tmp_path) < 9
