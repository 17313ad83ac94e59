"""examples/health_check.py in ``align fit``, from a directory of the user's own."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from align.callbacks import Reading
from align.cli import main


@pytest.fixture
def recipe(copy_example: Callable[[str], None], toys: Path) -> str:
    """SFT of a toy, validated after each of 3 steps, with steps too small for float32: the loss never falls."""
    copy_example("health_check")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    Path("chats.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 3)
    settings = {"init_from": "one", "optimizer": {"lr": 1e-30}, "schedule": {"kind": "constant", "warmup_steps": 0}}
    files = {"train": ["chats.jsonl"], "validation": ["chats.jsonl"]}
    data = {"tokenizer": "one", **files, "context": 32, "batch_size": 1, "packing": "none", "cache_dir": "cache"}
    trainer = {"default_root_dir": "run", "max_steps": 3, "accelerator": "cpu", "val_check_interval": 1}
    whole = {
        "trainer": trainer | {"enable_progress_bar": False},
        "model": {"class_path": "align.algorithms.SFT", "init_args": settings},
        "data": {"class_path": "align.data.ChatData", "init_args": data},
        "health": {"checks+": [{"class_path": "health_check.Plateau", "init_args": {"patience": 2}}]},
    }
    Path("sft.yaml").write_text(yaml.safe_dump(whole))
    return "sft.yaml"


def test_it_warns_beside_our_own_checks(recipe: str):
    """Equal losses, the first one before training: the second step's is the second without a new minimum."""
    assert main(["fit", "--config", recipe]) == 0
    (line,) = map(json.loads, Path("run/health.jsonl").read_text().splitlines())
    assert (line["step"], line["check"], line["metric"]) == (2, "Plateau", "val/loss")
    saved = yaml.safe_load(Path("run/config.yaml").read_text())["health"]["checks"]
    assert saved[-1] == {"class_path": "health_check.Plateau", "init_args": {"patience": 2}}
    assert len(saved) > 5


def test_its_own_checks_reach_the_command_line(recipe: str, capsys: pytest.CaptureFixture[str]):
    assert main(["fit", "--config", recipe, "--health.checks=[{class_path: health_check.Plateau, "
                 "init_args: {patience: 0}}]"]) == 2  # fmt: skip
    assert "Plateau.patience is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("losses", "warns"),
    [([2.0, 1.0, 1.1, 1.2, 1.0], True), ([2.0, 1.0, 1.1, 1.2], False), ([2.0, 1.0, 1.1, 0.9, 1.0], False)],
)
def test_by_hand(
    copy_example: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    losses: list[float],
    warns: bool,
):
    """With patience 3 the last three of five losses are compared with the minimum of the first two."""
    copy_example("health_check")
    monkeypatch.syspath_prepend(tmp_path)
    readings = {"val/loss": [Reading(10 * i, loss) for i, loss in enumerate(losses)]}
    finding = import_module("health_check").Plateau().find("val/loss", readings)
    assert (finding is not None) == warns
