"""Every stage on a device that is not the CPU: nothing is left behind, and it learns what it learns on the CPU."""

import csv
from pathlib import Path

import pytest
import yaml
from another_device import align_with_another_device
from safetensors.torch import load_file

from align.cli import main
from align.io.manifest import read_manifest

STAGES = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo")
OVERLAY = {"trainer": {"strategy": {"class_path": "another_device.AwayStrategy"}, "inference_mode": False}}


@pytest.fixture(scope="module")
def away(recipes: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each stage, trained there from what the stages before it made on the CPU."""
    out = tmp_path_factory.mktemp("away")
    overlay = out / "away.yaml"
    overlay.write_text(yaml.safe_dump(OVERLAY))

    def fit(stage: str, folder: Path, *more: str) -> list[str]:
        command = ["fit", "--config", str(recipes / f"{stage}.yaml"), *more, "--run", str(run)]
        return [*command, f"--trainer.default_root_dir={folder}"]

    # DPO's reference log-probs are computed there too, not found where the CPU's run left them.
    own = {"dpo": [f"--data.init_args.cache_dir={out / 'cache'}"]}
    align_with_another_device(
        *(fit(stage, out / stage, "--config", str(overlay), *own.get(stage, [])) for stage in STAGES)
    )
    assert list((out / "cache").glob("reference-*.npz"))
    assert main(fit("grpo", out / "grpo-here")) == 0  # which the pipeline runs only when it is asked to
    return out


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_learns_there_what_it_learns_on_the_cpu(run: Path, away: Path, stage: str):
    """Samples, probes, checkpoints, the health report and the model directory with its manifest included."""
    here, there = away / "grpo-here" if stage == "grpo" else run / stage, away / stage
    weights = load_file(there / "model/model.safetensors")
    for name, weight in load_file(here / "model/model.safetensors").items():
        assert (weight - weights[name]).abs().max() < 1e-4, name
    manifests = [read_manifest(folder / "model") for folder in (here, there)]
    # `align run` also records what the doctor found.
    assert manifests[0].keys() - {"doctor"} == manifests[1].keys()
    assert manifests[0]["cost"]["tokens_trained"] == manifests[1]["cost"]["tokens_trained"]
    assert manifests[0]["cost"]["labels"] == manifests[1]["cost"]["labels"]
    columns = [set(next(csv.reader((folder / "metrics.csv").open()))) for folder in (here, there)]
    assert columns[0] - columns[1] <= {"throughput/mfu"}
