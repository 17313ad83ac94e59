"""examples/callback.py in ``align fit``, from a directory of the user's own."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from align.cli import main


def fit(run: str, **trainer: object) -> dict[str, torch.Tensor]:
    """Two steps of SFT on a toy; its weights afterwards."""
    settings = {"init_from": "one", "optimizer": {"lr": 1e-3}, "schedule": {"kind": "constant", "warmup_steps": 0}}
    data = {"tokenizer": "one", "train": ["chats.jsonl"], "context": 32, "batch_size": 1, "packing": "none"}
    whole = {
        "trainer": {"default_root_dir": run, "max_steps": 2, "accelerator": "cpu", "log_every_n_steps": 1}
        | {"enable_progress_bar": False}
        | trainer,
        "model": {"class_path": "align.algorithms.SFT", "init_args": settings},
        "data": {"class_path": "align.data.ChatData", "init_args": data | {"cache_dir": "cache"}},
        "model_directory": {"which": "last"},
    }
    Path(f"{run}.yaml").write_text(yaml.safe_dump(whole))
    assert main(["fit", "--config", f"{run}.yaml"]) == 0
    return load_file(f"{run}/model/model.safetensors")


def test_it_logs_the_distance_and_changes_nothing(copy_example: Callable[[str], None], toys: Path):
    """The last value logged is the norm of the difference between the weights written and those of the start."""
    copy_example("callback")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    Path("chats.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 3)
    callback = {"class_path": "callback.DistanceFromStart", "init_args": {"every_n_steps": 1}}
    plain, watched = fit("plain"), fit("watched", callbacks=[callback])
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    with Path("watched/metrics.csv").open() as file:
        logged = [float(row["train/distance"]) for row in csv.DictReader(file) if row.get("train/distance")]
    start = load_file("one/model.safetensors")
    distance = sum(float((watched[name] - start[name]).double().square().sum()) for name in start) ** 0.5
    assert logged[-1] == pytest.approx(distance, rel=1e-5)
    assert 0 < logged[0] < logged[-1]
