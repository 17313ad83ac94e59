"""Mistakes in a recipe or its files are one line, and lose nothing."""

from pathlib import Path

import pytest
from naming import error_line, names

from align.cli import main


def fit(recipes: Path, run: Path, name: str, *extra: str) -> list[str]:
    return ["fit", "--config", str(recipes / f"{name}.yaml"), "--run", str(run), *extra]


@pytest.mark.parametrize(
    ("extra", "code", "named"),
    [
        (["--model.init_args.gpt.layrs", "3"], 2, ["model.init_args.gpt.layrs", "layers"]),
        (["--model.init_args.gpt.layers", "many"], 2, ["model.init_args.gpt.layers", "int", "many"]),
        (["--model.init_args.gpt.norm", "rms"], 2, ["model.init_args.gpt.norm", "rms", "rmsnorm"]),
        (["--model.init_args.gpt.width", "33"], 2, ["heads", 4, "width", 33]),
        (["--model.init_args.optimizer.lr", "-1"], 2, ["optimizer.lr", "-1.0"]),
        (["--trainer.max_step", "3"], 2, ["trainer.max_step", "max_steps"]),
        (["--trainer.precision", "bf17"], 2, ["trainer.precision", "bf17"]),
        (["--trainer.precision", "bf16-true"], 1, ["trainer.precision", "bf16-true"]),
        (["--model.init_args.memory.activation_checkpointing", "all"], 2, ["activation_checkpointing", "all"]),
        (["--model.init_args.optimizer.state_bits", "4"], 2, ["optimizer.state_bits", 4]),
        (["--data.init_args.packng", "x"], 2, ["data.init_args.packng", "packing"]),
        (["--data.class_path", "align.data.TextDta"], 2, ["TextDta"]),
        (["--data.init_args.train", "nothing.jsonl"], 1, ["nothing.jsonl"]),
        (["--data.init_args.tokenizer", "nowhere"], 2, ["nowhere"]),
        (["--config", "nothing.yaml"], 2, ["nothing.yaml"]),
        (["--model.init_args.gpt.vocab_size", "512"], 1, ["vocab_size", 768, 512]),
        (["--model.init_args.gpt.context", "64"], 1, ["data.context", 192, 64]),
        (
            ["--trainer.val_check_interval", "5000", "--trainer.check_val_every_n_epoch", "1"],
            2,
            ["trainer.val_check_interval", 5000, "trainer.check_val_every_n_epoch"],
        ),
        (["--model_directory.monitor", "val/los"], 1, ["model_directory.monitor", "val/los"]),
    ],
)
def test_a_mistake_is_one_line(run: Path, recipes: Path, capsys, extra: list[str], code: int, named: list):
    model = run / "pretrain/model/model.safetensors"
    before = model.read_bytes()
    assert main(fit(recipes, run, "pretrain", *extra)) == code
    error_line(capsys, "align fit", *named)
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", []),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe", []),
        (b'{"messages": [{"role": "user", "content": "hi"}]}\n', ["assistant"]),
        (b'{"messages": [{"role": "wizard", "content": "hi"}]}\n', ["wizard"]),
        (b'{"messages": [{"role": "user"}]}\n', ["content"]),
    ],
)
def test_a_bad_file_is_one_line(run: Path, recipes: Path, tmp_path: Path, capsys, content: bytes, named: list[str]):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    assert main(fit(recipes, run, "sft", "--data.init_args.train", str(file))) == 1
    error_line(capsys, "align fit", "bad.jsonl", *named)


def test_a_truncated_model_directory_is_one_line(run: Path, recipes: Path, tmp_path: Path, capsys):
    import shutil

    broken = tmp_path / "model"
    shutil.copytree(run / "pretrain/model", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(fit(recipes, run, "sft", "--model.init_args.init_from", str(broken))) == 1
    error_line(capsys, weights)
    weights.unlink()
    assert main(["generate", str(broken), "--prompt", "x"]) == 1
    error_line(capsys, broken)


def test_a_full_disk_while_writing_the_model_keeps_the_old_one(run: Path, recipes: Path, capsys, monkeypatch):
    """The device is full when the weights are written: exit 1, one line, and model/ is the one from before."""
    import errno
    import os

    from align.callbacks import model_directory

    before = {path.name: path.read_bytes() for path in (run / "sft/model").iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")

    monkeypatch.setattr(model_directory, "save_network", full)
    assert main(fit(recipes, run, "sft")) == 1
    error_line(capsys, os.strerror(errno.ENOSPC), run / "sft/model")
    assert {path.name: path.read_bytes() for path in (run / "sft/model").iterdir()} == before
    assert [path.name for path in (run / "sft").iterdir() if path.name.startswith(".")] == [".lock"]


@pytest.mark.parametrize(
    ("extra", "code", "named"),
    [
        ([], 2, ["--prompt", "--prompts"]),
        (["--prompt", "x", "--n", "0"], 2, ["n", 0]),
        (["--prompt", "x", "--temperature", "-1"], 2, ["temperature", "-1.0"]),
        (["--prompt", "x", "--temprature", "1"], 2, ["--temprature", "temperature"]),
        (["--prompts", "nothing.jsonl"], 1, ["nothing.jsonl"]),
        (["--prompt", "x", "--judge", "sandbx"], 1, ["sandbx"]),
    ],
)
def test_generate_mistakes(run: Path, capsys, extra: list[str], code: int, named: list):
    assert main(["generate", str(run / "sft/model"), *extra]) == code
    error_line(capsys, *named)


@pytest.mark.parametrize(
    ("accelerator", "gpu", "bfloat16", "precision"),
    [
        ("auto", True, True, "bf16-mixed"),
        ("gpu", True, True, "bf16-mixed"),
        ("auto", True, False, "32-true"),
        ("cpu", True, True, "32-true"),
        ("auto", False, False, "32-true"),
    ],
)
def test_precision_follows_the_device(monkeypatch, accelerator, gpu, bfloat16, precision):
    import torch

    from align.cli.lightning import default_precision

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    assert default_precision(accelerator) == precision


def test_out_of_memory_names_sizes_and_settings(run: Path, recipes: Path, tmp_path: Path, capsys, monkeypatch):
    import torch

    from align.algorithms.pretrain import Pretrain

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Pretrain, "training_step", full)
    folder = ["--trainer.default_root_dir", str(tmp_path / "out")]
    assert main(fit(recipes, run, "pretrain", *folder)) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("align fit: error: "))
    parts = ("parameters", "gradients", "optimizer", "activations", "logits")
    assert names(lines[start], "cpu", 4, 193, *parts)
    assert len(lines[start + 1 :]) == 4, "a heading and three settings"
    assert all("GB" in line or "MB" in line for line in lines[start + 2 :])


def test_the_average_is_what_the_run_writes(run: Path, recipes: Path, tmp_path: Path):
    """model/ holds what the checkpoint's callback averaged, not what its network has: the callbacks' order is right."""
    import torch

    from align.io.directory import load_network
    from align.io.manifest import read_manifest

    out = tmp_path / "out"
    words = ["--trainer.default_root_dir", str(out), "--average.decay", "0.9", "--model_directory.which", "last"]
    assert main(fit(recipes, run, "pretrain", *words, "--trainer.max_steps", "3")) == 0
    stored = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    average = next(state for name, state in stored["callbacks"].items() if name.startswith("WeightAverage"))
    assert read_manifest(out / "model")["average"] == {"decay": 0.9, "steps": 3}
    for name, written in load_network(out / "model").named_parameters():
        assert torch.equal(written, average["average"][name])
        assert not torch.equal(written, stored["state_dict"][f"network.{name}"])
