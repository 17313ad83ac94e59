"""What stages cost, counted from what they leave behind."""

import csv
import json
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from align.callbacks.cost import Cost
from align.cli import main
from align.io import memory
from align.io.directory import load_network
from align.io.manifest import read_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT


def cost(stage: Path) -> dict[str, float]:
    return read_manifest(stage / "model")["cost"]


def test_ppo_counts_what_it_sampled_and_read(run: Path) -> None:
    """One iteration of 4 responses, one pass over them: the lengths that were logged, and the FLOPs that they make.

    Policy and value model learn from the rows; the policy sampled the responses; reference, reward and value model
    read the rows without a backward pass, a third of a training token's FLOPs.
    """
    found = cost(run / "ppo")
    with (run / "ppo/metrics.csv").open() as file:
        (length,) = [float(row["rollout/length"]) for row in csv.DictReader(file) if row["rollout/length"]]
    assert found["samples"] == 4
    assert found["tokens_sampled"] == round(4 * length)
    assert found["labels"] == 0
    rows = found["tokens_trained"]  # prompts and responses, once
    assert rows > found["tokens_sampled"]
    a_token = load_network(run / "ppo/model").flops_per_token(round(rows / 4))
    assert found["flops"] == pytest.approx(a_token * (2 * rows + (3 * rows + found["tokens_sampled"]) / 3))


def test_dpo_counts_its_labels_once(run: Path) -> None:
    found = cost(run / "dpo")
    pairs = [json.loads(line) for line in (run / "preferences/train.jsonl").read_text().splitlines()]
    assert found["labels"] == len(pairs) == 24
    assert found["samples"] == found["tokens_sampled"] == 0
    assert found["flops"] > 0
    assert found["wall_seconds"] > 0
    assert found["cpu_seconds"] > 0
    assert 50 < found["peak_memory_mib"] < 20_000


def test_a_resumed_run_counts_from_its_beginning(recipes: Path, run: Path, tmp_path: Path) -> None:
    common = ["fit", "--config", str(recipes / "dpo.yaml"), "--run", str(run), f"--trainer.default_root_dir={tmp_path}"]
    assert main([*common, "--trainer.max_steps=4"]) == 0
    first = cost(tmp_path)
    assert main([*common, "--ckpt_path=last"]) == 0
    whole, straight = cost(tmp_path), cost(run / "dpo")
    for name in ("tokens_trained", "labels", "flops"):
        assert whole[name] == straight[name]
        assert first[name] < whole[name]
    assert whole["wall_seconds"] > first["wall_seconds"] * 0.5


def test_peak_memory_is_not_measured_on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No /proc, no module ``resource``: null in the manifest, and a dash in tables."""
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "absent")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "resource", None)
    stage = SimpleNamespace(network=GPT(GPTConfig(vocab_size=8, layers=1, heads=1, width=8, context=8)))
    counted = Cost()
    counted.load_state_dict(counted.state_dict())
    assert counted.cost(stage)["peak_memory_mib"] is None


@pytest.mark.parametrize(("system", "mib"), [("linux", 300.0), ("darwin", 300.0 / 1024)])
def test_peak_memory_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, mib: float) -> None:
    """getrusage counts KiB, on macOS bytes."""
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "absent")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=300 * 1024))
    monkeypatch.setattr(sys, "platform", system)
    assert Cost().state_dict()["peak_memory_mib"] == mib
