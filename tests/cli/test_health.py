"""NaN in the middle of `align fit`: one line, exit 1, and nothing on disk is the worse for it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from naming import error_line

from align.algorithms.sft import SFT
from align.cli import main


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 4 on SFT's gradient is NaN while its loss is finite: the gradient of sqrt at 0 times 0."""
    step = SFT.training_step

    def training_step(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        return loss + (self.network.output_weight * 0).sum().sqrt() if self.trainer.global_step >= 4 else loss

    monkeypatch.setattr(SFT, "training_step", training_step)


def test_nan_in_sft(run: Path, recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], poisoned: None):
    """A model of an earlier run lies in the folder and is untouched: the NaN comes before the first validation."""
    folder = tmp_path / "sft"
    shutil.copytree(run / "sft/model", folder / "model")
    before = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    command = ["fit", "--config", str(recipes / "sft.yaml"), "--run", str(run), "--checkpoint.every_n_train_steps=2"]
    command += [f"--trainer.default_root_dir={folder}", "--trainer.val_check_interval=6"]
    assert main(command) == 1
    error_line(capsys, "align fit", "gradient", 4)
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint["state_dict"].values())
    assert {path.name: path.read_bytes() for path in (folder / "model").iterdir()} == before
    (line,) = (json.loads(line) for line in (folder / "health.jsonl").read_text().splitlines())
    assert (line["step"], line["check"], line["value"]) == (4, "nonfinite", "nan")


def test_checks_are_settings_of_every_recipe(run: Path, recipes: Path, capsys: pytest.CaptureFixture[str]):
    checks = yaml.safe_load((run / "sft/config.yaml").read_text())["health"]["checks"]
    assert {check["class_path"]: check["init_args"] for check in checks}["align.callbacks.health_checks.KLRunaway"] == {
        "budget": 20.0,
        "growth": 4.0,
        "window": 5,
    }
    command = ["fit", "--config", str(recipes / "sft.yaml"), "--run", str(run)]
    assert main([*command, "--health.checks+={class_path: KLRunaway, init_args: {budget: -1}}"]) == 2
    error_line(capsys, "KLRunaway.budget", "-1.0")
    assert main([*command, "--health.checks+={class_path: KLRunaway, init_args: {buget: 3}}"]) == 2
    error_line(capsys, "buget")


@pytest.mark.parametrize(
    ("stage", "readings"),
    [
        ("ppo", {"rollout/kl": 1, "rollout/explained_variance": 1, "rollout/gold": 1, "policy/kl": 2}),
        ("dpo", {"train/logprob_chosen": 3, "train/logprob_rejected": 3, "policy/kl": 3, "policy/reward": 3}),
    ],
)
def test_every_fresh_value_is_read_once(run: Path, stage: str, readings: dict[str, int]):
    """PPO: 1 iteration; DPO: 6 steps, every second logged. Validations: before training, then 1 and 2."""
    checkpoint = torch.load(run / stage / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == {"ppo": 2, "dpo": 6}[stage]
    state = checkpoint["callbacks"]["Health"]["history"]
    assert {name: len(state[name]) for name in readings} == readings
