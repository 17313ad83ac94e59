"""Several processes give what one gives: the drill of benchmarks/equality.py, on the shrunken pipeline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_on_every_strategy_equals_one_process(run: Path, recipes: Path, tmp_path: Path):
    """Loss curve, metrics and final weights, to rounding: sums are added up in another order.

    A step of AdamW divides by the root of the squared gradient: where that is tiny, rounding turns into a share of the
    step, which is why weights are compared to how far they moved, at 1%.
    """
    out = tmp_path / "equality.json"
    words = ["--run", run, "--recipes", recipes, "--work", tmp_path / "work", "--out", out, "--steps", "3"]
    words += ["--rows", "4", "--strategies", "ddp", "fsdp2", "tp", "--reference", "precomputed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, ROOT / "benchmarks/equality.py", *map(str, words)], check=True, env=environment)
    rows = json.loads(out.read_text())["table"]
    assert len(rows) == 6 * 3
    for row in rows:
        assert row["loss"] < 1e-3, row
        assert row["metrics"] < 1e-3, row
        assert row["weights"] < 1e-2, row


def test_the_sizes_of_a_mesh_come_from_the_devices():
    from align.stages import ModelParallel

    strategy = ModelParallel(tensor_parallel_size=4)
    strategy.parallel_devices = [torch.device("cpu")] * 6
    with pytest.raises(ValueError, match=r"tensor_parallel_size is 4: it must divide the number of devices \(6\)"):
        strategy.setup_environment()
