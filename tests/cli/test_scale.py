"""Several processes give what one gives: the drill of benchmarks/equality.py, on the shrunken pipeline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_the_sizes_of_a_mesh_come_from_the_devices():
    from align.stages import ModelParallel

    strategy = ModelParallel(tensor_parallel_size=4)
    strategy.parallel_devices = [torch.device("cpu")] * 6
    with pytest.raises(ValueError, match=r"tensor_parallel_size is 4: it must divide the number of devices \(6\)"):
        strategy.setup_environment()


def test_accumulation_under_deepspeed_is_refused():
    """It keeps its gradients, so nobody could weigh micro-batches by their tokens."""
    from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

    from align.stages.strategy import check_accumulation

    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # the package is not there
    check_accumulation(strategy, 1)
    check_accumulation(DDPStrategy(), 4)
    with pytest.raises(
        ValueError, match="accumulate_grad_batches is 4: DeepSpeed .* set it to 1, or train with .*fsdp2"
    ):
        check_accumulation(strategy, 4)


@pytest.mark.parametrize(
    ("overlay", "end"),
    [("deepspeed", "Install it by running `pip install -U deepspeed`."), ("multinode_slurm", "gpu backend found!")],
)
def test_an_overlay_without_what_it_needs_says_so(
    run: Path, overlay: str, end: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    recipes = [ROOT / "recipes/tiny/sft.yaml", ROOT / f"recipes/hardware/{overlay}.yaml"]
    assert main(["fit", *(f"--config={recipe}" for recipe in recipes), f"--run={run}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("align fit: error: ")
    assert error[-1].endswith(end)
