"""A run that resumes under different numerics warns: it is not bitwise identical to an uninterrupted one."""

import warnings
from pathlib import Path

import pytest
import torch
from test_checkpoints import train

from align.training.numerics import changes


@pytest.fixture
def threads():
    """Gives back how many there were."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def said(run: Path, checkpoint: Path, **settings) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(run, str(checkpoint), max_epochs=-1, max_steps=4, **settings)
    names = ("precision", "threads", "instructions")
    return [line for line in (str(warning.message) for warning in caught) if any(name in line for name in names)]


@pytest.fixture
def checkpoint(tmp_path: Path, threads: int) -> Path:
    torch.set_num_threads(1)
    train(tmp_path / "whole", max_epochs=-1, max_steps=2)
    return tmp_path / "whole/checkpoints/last.ckpt"


def test_a_checkpoint_records_its_numerics(checkpoint: Path):
    assert torch.load(checkpoint, weights_only=True)["numerics"] == {
        "torch": torch.__version__,
        "strategy": "SingleDeviceStrategy",
        "ranks": 1,
        "precision": "32-true",
        "device": "cpu",
        "threads": 1,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def test_the_same_numerics_are_not_mentioned(tmp_path: Path, checkpoint: Path):
    assert said(tmp_path / "same", checkpoint) == []


def test_other_threads_and_precision_are_named(tmp_path: Path, checkpoint: Path):
    torch.set_num_threads(3)
    (line,) = said(tmp_path / "other", checkpoint, precision="bf16-mixed")
    precision, _, threads = line.partition("threads")
    assert precision.index("precision") < precision.index("32-true") < precision.index("bf16-mixed")
    assert threads.index("1") < threads.index("3")
    assert not any(name in line for name in ("ranks", "instructions"))


def test_what_only_one_of_them_records_is_named():
    """A run moved from a CPU to a GPU."""
    then = {"ranks": 1, "device": "cpu", "threads": 2}
    line = changes(then, {"ranks": 1, "device": "NVIDIA H100"})
    assert "ranks" not in line
    assert line.index("device") < line.index("cpu") < line.index("NVIDIA H100")
    line = changes({"device": "NVIDIA H100"}, then)
    assert line.index("ranks") < line.index("1")
    assert line.index("device") < line.index("NVIDIA H100") < line.index("cpu")
    assert line.index("threads") < line.index("2")
