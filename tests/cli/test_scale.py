"""Several processes give what one gives: the drill of benchmarks/equality.py, on the shrunken pipeline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from naming import error_line, naming
from safetensors.torch import load_file

from align.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_on_every_strategy_equals_one_process(run: Path, recipes: Path, tmp_path: Path):
    """Loss curve, metrics and final weights, to rounding: sums are added up in another order.

    A step of AdamW divides by the root of the squared gradient: where that is tiny, rounding turns into a share of the
    step, which is why weights are compared to how far they moved, at 0.5%.
    """
    out = tmp_path / "equality.json"
    words = ["--run", run, "--recipes", recipes, "--work", tmp_path / "work", "--out", out, "--steps", "3"]
    words += [
        "--stages",
        "pretrain",
        "sft",
        "reward",
        "dpo",
        "ppo",
        "--rows",
        "4",
        "--strategies",
        "ddp",
        "fsdp2",
        "tp",
        "--reference",
        "precomputed",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, ROOT / "benchmarks/equality.py", *map(str, words)], check=True, env=environment)
    rows = json.loads(out.read_text())["table"]
    assert len(rows) == 5 * 3
    for row in rows:
        assert row["loss"] < 1e-3, row
        assert row["metrics"] < 1e-3, row
        assert row["weights"] < 5e-3, row


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sharded_checkpoint_goes_on_under_other_strategies(
    run: Path, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """DPO under FSDP2, taken up at its third step of six by tensor parallelism, by DDP and by one process."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from processes import launch

    def fit(name: str, processes: int, rows: int, *words: str) -> dict[str, torch.Tensor]:
        overlay = [f"--config={ROOT}/recipes/hardware/{name}.yaml"] if processes > 1 else []
        words = (
            "-m", "align", "fit", f"--config={recipes}/dpo.yaml", *overlay, "--trainer.accelerator=cpu",
            f"--trainer.devices={processes}", f"--run={run}", f"--trainer.default_root_dir={tmp_path / name}",
            "--trainer.max_steps=6", "--checkpoint.every_n_train_steps=3", "--checkpoint.keep_last=2",
            f"--data.init_args.batch_size={rows}", "--model_directory.which=last", *words,
        )  # fmt: skip
        launch(words, processes, logs=tmp_path / name, timeout=200)
        return load_file(tmp_path / name / "model/model.safetensors")

    whole = fit("fsdp2", 2, 2)
    start = load_file(run / "sft/model/model.safetensors")
    half = tmp_path / "fsdp2/checkpoints/last-1.ckpt"
    assert half.is_dir()
    moved = sum(float((whole[name] - start[name]).square().sum()) for name in whole) ** 0.5
    assert moved > 0
    for name, processes, rows in (("tp", 2, 4), ("ddp", 2, 2), ("one", 1, 4)):
        resumed = fit(name, processes, rows, f"--ckpt_path={half}")
        error = sum(float((whole[key] - resumed[key]).square().sum()) for key in whole) ** 0.5
        assert error < 5e-3 * moved, name
    exported = tmp_path / "exported"
    assert main(["export", str(tmp_path / "fsdp2/checkpoints/last.ckpt"), "--out", str(exported)]) == 0
    for name, tensor in load_file(exported / "model.safetensors").items():
        assert torch.equal(tensor, whole[name])


def test_the_sizes_of_a_mesh_come_from_the_devices():
    from align.training.strategy import ModelParallel

    strategy = ModelParallel(tensor_parallel_size=4)
    strategy.parallel_devices = [torch.device("cpu")] * 6
    with pytest.raises(ValueError, match=naming("tensor_parallel_size", 4, 6)):
        strategy.setup_environment()


def test_accumulation_under_deepspeed_is_refused():
    """It keeps its gradients, so nobody could weigh micro-batches by their tokens."""
    from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

    from align.training.strategy import check_accumulation

    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # the package is not there
    check_accumulation(strategy, 1)
    check_accumulation(DDPStrategy(), 4)
    with pytest.raises(ValueError, match=naming("accumulate_grad_batches", 4, "DeepSpeed", 1, "fsdp2.yaml")):
        check_accumulation(strategy, 4)


@pytest.mark.parametrize(
    ("overlay", "needed"),
    [("deepspeed", "pip install -U deepspeed"), ("multinode_slurm", "gpu")],
)
def test_an_overlay_without_what_it_needs_says_so(
    run: Path, overlay: str, needed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    recipes = [ROOT / "recipes/tiny/sft.yaml", ROOT / f"recipes/hardware/{overlay}.yaml"]
    assert main(["fit", *(f"--config={recipe}" for recipe in recipes), f"--run={run}"]) == 2
    error_line(capsys, "align fit", needed)
