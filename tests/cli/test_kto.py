"""``align fit`` with recipes/tiny/kto.yaml, on the pairs of the shrunken pipeline."""

import csv
import json
from pathlib import Path

import pytest

from align.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("overlays", [[], ["recipes/hardware/lora.yaml"]], ids=["whole", "lora"])
def test_kto_on_the_labels_of_dpo(recipes: Path, run: Path, tmp_path: Path, overlays: list[str]):
    """As many labels as in both sides of DPO's pairs, a first loss of 1/2, and a model that says what trained it."""
    words = [f"--config={path}" for path in (recipes / "kto.yaml", *(ROOT / overlay for overlay in overlays))]
    assert main(["fit", *words, f"--run={run}", f"--trainer.default_root_dir={tmp_path}"]) == 0
    manifest = json.loads((tmp_path / "model/align.json").read_text())
    assert manifest["stage"] == "kto"
    pairs = len((run / "preferences/train.jsonl").read_text().splitlines())
    assert manifest["cost"]["labels"] == min(2 * pairs, 6 * 4)
    with (tmp_path / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert losses[0] == pytest.approx(0.5, abs=1e-4)
    assert {"val/loss", "val/margin", "policy/kl"} <= set(manifest["metrics"])
    assert (tmp_path / "adapter").is_dir() == bool(overlays)
