"""Checks that a refactoring changes no numbers: hashes of what every stage of recipes/tiny learns in a few steps.

    python benchmarks/oracle.py --out before.json                       # on the old code
    python benchmarks/oracle.py --out after.json --against before.json  # on the new; exit code 1 where they differ

Runs the tiny pipeline with a toy network (``tests/cli/conftest.py: shrink``), and GRPO, LoRA DPO and RLOO, on one
thread. For each stage it prints a hash of the weights and one of the metrics; for samples, preferences and the
comparison, a hash of the file. Compare hashes from one machine only: another processor rounds differently.
"""

import argparse
import csv
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
FILES = (
    "samples/sft.jsonl",
    "preferences/train.jsonl",
    "preferences/val.jsonl",
    "samples/dpo.jsonl",
    "samples/ppo.jsonl",
)
METRICS = ("train/", "val/", "test/", "policy/", "rollout/", "update/", "value/", "lr")
"""Beginnings of the metrics that say nothing of time or memory"""


def digest(*parts: bytes) -> str:
    """The first 16 hexadecimal digits of a sha256."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]


def weights(directory: Path) -> str:
    """A hash of the names, shapes and values of a model directory's tensors."""
    from safetensors.torch import load_file

    tensors = sorted(load_file(directory / "model.safetensors").items())
    return digest(*(part for name, tensor in tensors for part in (name.encode(), tensor.numpy().tobytes())))


def metrics(run: Path) -> dict[str, str]:
    """Every value of a run's metrics.csv, by name and step, that does not depend on the clock."""
    found = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name.startswith(METRICS):
                    found[f"{name}@{row['step']}"] = value
    return found


def shrink_module() -> ModuleType:
    """tests/cli/conftest.py, which shrinks the pipeline."""
    spec = importlib.util.spec_from_file_location("tiny_pipeline", ROOT / "tests/cli/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def collect(work: Path) -> dict[str, object]:
    """Run everything below ``work``; returns hashes and metrics by stage."""
    from align.cli import main

    recipes = shrink_module().shrink(work / "recipes")
    run = work / "run"
    stages = ["pretrain", "sft", "reward", "dpo", "ppo", "grpo"]
    assert main(["run", str(recipes), "--out", str(run)]) == 0
    assert main(["run", str(recipes), "--out", str(run), "--only", "grpo"]) == 0
    lora = [f"--config={ROOT}/recipes/hardware/lora.yaml", "--model.init_args.optimizer.lr=1e-3"]
    for name in ("dpo", "ppo"):
        words = [f"--config={recipes}/{name}.yaml", *lora, f"--run={run}"]
        assert main(["fit", *words, f"--trainer.default_root_dir={run}/{name}_lora"]) == 0
        stages.append(f"{name}_lora")
    found: dict[str, object] = {}
    for stage in stages:
        found[stage] = {"weights": weights(run / stage / "model"), "metrics": metrics(run / stage)}
    for name in FILES:
        found[name] = digest((run / name).read_bytes())
    return found


def differences(before: dict, after: dict) -> list[str]:
    """The differences, one line each."""
    lines = []
    for name, old in before.items():
        new = after.get(name)
        if not isinstance(old, dict) or not isinstance(new, dict):
            lines += [] if old == new else [f"{name}: {old} -> {new}"]
            continue
        if old["weights"] != new["weights"]:
            lines.append(f"{name}: weights {old['weights']} -> {new['weights']}")
        for key in sorted(old["metrics"].keys() | new["metrics"].keys()):
            one, other = old["metrics"].get(key), new["metrics"].get(key)
            if one != other:
                lines.append(f"{name}: {key} {one} -> {other}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write hashes and metrics to this JSON file")
    parser.add_argument("--against", type=Path, help="compare with this file of an earlier run")
    parser.add_argument("--work", type=Path, help="keep the runs here (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = collect(options.work or Path(folder))
    for name, value in found.items():
        if isinstance(value, dict):
            values = json.dumps(value["metrics"], sort_keys=True).encode()
            print(f"{name:24} weights {value['weights']}  metrics {digest(values)}")
        else:
            print(f"{name:24} {value}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if options.against:
        lines = differences(json.loads(options.against.read_text()), found)
        print("\n".join(lines) or "equal")
        return 1 if lines else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
