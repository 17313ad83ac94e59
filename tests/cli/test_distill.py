"""``align fit`` with recipes/distillation, on the models and data of the shrunken pipeline."""

import csv
import json
from pathlib import Path

import pytest

from align.cli import main
from align.io.directory import load_network

ROOT = Path(__file__).resolve().parents[2]
FEW = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
FEW += ["--trainer.limit_val_batches=2", "--data.init_args.batch_size=2", "--trainer.enable_progress_bar=false"]


def fit(recipe: str, run: Path, out: Path, *words: str) -> dict[str, dict]:
    """Distil from run/sft to a student of run/pretrain; the manifest and the metrics."""
    sources = [f"--model.init_args.init_from={run}/pretrain/model", f"--model.init_args.teacher={run}/sft/model"]
    sources += [f"--data.init_args.tokenizer={run}/pretrain/model", f"--data.init_args.cache_dir={out}/cache"]
    recipe_file = f"--config={ROOT}/recipes/distillation/{recipe}.yaml"
    words = (recipe_file, f"--run={run}", f"--trainer.default_root_dir={out}", *sources, *FEW, *words)
    assert main(["fit", *words]) == 0
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {"manifest": json.loads((out / "model/align.json").read_text()), "rows": rows}


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_on_data(run: Path, tmp_path: Path, lora: bool):
    words = ["--model.init_args.lora={rank: 2}", "--model.init_args.optimizer.lr=null"] if lora else []
    found = fit("distill", run, tmp_path, *words)
    assert found["manifest"]["stage"] == "distill"
    assert {"val/loss", "val/divergence"} <= set(found["manifest"]["metrics"])
    teacher = load_network(str(run / "sft/model"))
    assert found["manifest"]["cost"]["flops"] > teacher.flops_per_token(64, forward_only=True)
    divergence = [float(row["val/divergence"]) for row in found["rows"] if row.get("val/divergence")]
    assert divergence[-1] < divergence[0]


def test_on_policy(run: Path, tmp_path: Path):
    words = ["--trainer.max_epochs=2", "--model.init_args.max_new_tokens=6"]
    words += ["--model.init_args.policy_evaluation.prompts=2"]
    found = fit("on_policy", run, tmp_path, "--model.init_args.policy_evaluation.max_new_tokens=6", *words)
    manifest = found["manifest"]
    assert manifest["stage"] == "onpolicydistill"
    assert {"policy/kl", "policy/reward"} <= set(manifest["metrics"])
    assert manifest["cost"]["samples"] == 4 * 2
    assert 8 <= manifest["cost"]["tokens_sampled"] <= 8 * 6


def test_a_teacher_with_another_tokenizer_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(run / "sft/model", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    words = [f"--config={ROOT}/recipes/distillation/distill.yaml", f"--run={run}", *FEW]
    words += [f"--model.init_args.init_from={run}/pretrain/model", f"--data.init_args.tokenizer={run}/pretrain/model"]
    words += [f"--model.init_args.teacher={other}", f"--trainer.default_root_dir={tmp_path}/out"]
    assert main(["fit", *words, f"--data.init_args.cache_dir={tmp_path}/cache"]) in (1, 2)
    assert str(other) in capsys.readouterr().err
