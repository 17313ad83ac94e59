"""Every stage of the recipes for published models, two steps each, on a small random checkpoint of the family."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from published import (
    ROOT,
    shrink,
    write_chats,
    write_gpt_neox,
    write_hh,
    write_qwen2,
    write_smollm2,
    write_tldr,
)

from align.cli import main
from align.tokenizer import Tokenizer
from align.tokenizer.given_template import PLAIN


def run(name: str, folder: Path, model: Path, variables: dict[str, str], *words: str, context: int = 200) -> Path:
    """Run a shrunken recipe; returns its folder of runs."""
    out = folder / "runs"
    assignments = {"model": str(model), **variables}
    sets = [word for key, value in assignments.items() for word in ("--set", f"{key}={value}")]
    assert main(["run", str(shrink(name, folder / name, context=context)), "--out", str(out), *sets, *words]) == 0
    return out


def logged(run: Path, stage: str, metric: str = "train/loss") -> list[float]:
    """A metric of each step."""
    with (run / stage / "metrics.csv").open() as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


def check_stages(out: Path, name: str) -> None:
    """Every training stage took two steps with finite losses, and every stage wrote what it announces."""
    pipeline: dict[str, Any] = yaml.safe_load((ROOT / "recipes" / name / "pipeline.yaml").read_text())
    for stage, body in pipeline["stages"].items():
        assert Path(body["writes"].replace("${run}", str(out))).exists(), stage
        if body["command"] == "fit":
            found = logged(out, stage)
            assert len(found) == 2, stage
            assert all(map(math.isfinite, found)), stage
            assert json.loads((out / stage / "model/align.json").read_text())["step"] == 2
    # The policy begins as its reference, whatever the recipe adds to the loss.
    assert logged(out, "dpo", "train/margin")[0] == pytest.approx(0, abs=2e-5)


def check_responses(out: Path, *comparisons: str) -> None:
    """No sample has a token beyond the tokenizer's ids, of which a random network would draw one in ten."""
    for name in comparisons:
        report = json.loads((out / name / "report.json").read_text())
        for model in report["models"].values():
            assert all(math.isfinite(reward["mean"]) for reward in model["rewards"].values())
        assert report["models"][report["baseline"]]["kl"]["mean"] == 0


@pytest.mark.slow
def test_smollm2(tmp_path: Path):
    """With a pretrained chat model of SmolLM2's kind; the checks score a random network's few tokens."""
    model = write_smollm2(tmp_path / "model")
    out = run("smollm2-135m", tmp_path, model, {}, context=480)
    check_stages(out, "smollm2-135m")
    check_responses(out, "compare", "compare_heldout_kinds")
    report = json.loads((out / "compare/report.json").read_text())
    assert set(report["models"]) == {"sft", "base", "best4", "dpo", "ppo", "grpo"}
    check_pooling(out, tmp_path / "smollm2-135m/seeds.yaml", model, tmp_path / "pooled")


def check_pooling(out: Path, pipeline: Path, model: Path, pooled: Path) -> None:
    """Three copies of a run as three seeds: all responses come from its logs."""
    for seed in range(3):
        shutil.copytree(out, pooled / f"seed{seed}")
    for part in ("compare", "compare_heldout_kinds"):
        shutil.copytree(out / part / "cache", pooled / part / "cache")
    before = {path.relative_to(pooled) for path in pooled.glob("*/cache/responses-*")}
    assert main(["run", str(pipeline), "--out", str(pooled), "--set", f"model={model}"]) == 0
    assert {path.relative_to(pooled) for path in pooled.glob("*/cache/responses-*")} == before
    one, three = (json.loads((folder / "compare/report.json").read_text()) for folder in (out, pooled))
    assert (one["seeds"], three["seeds"]) == (1, 3)
    for name, measured in three["models"].items():
        assert measured["rewards"]["strict"]["mean"] == one["models"][name]["rewards"]["strict"]["mean"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    model, variables = write_qwen2(folder / "model"), write_chats(folder)
    return run("qwen2.5-0.5b", folder, model, variables)


@pytest.mark.slow
def test_qwen(qwen: Path):
    check_stages(qwen, "qwen2.5-0.5b")
    check_responses(qwen, "compare", "compare_math")
    tokenizer = Tokenizer.load(qwen / "dpo/model")
    assert [tokenizer.token_text(i) for i in tokenizer.stop_ids] == ["<|im_end|>", "<|endoftext|>"]
    written = json.loads((qwen / "dpo/model/generation_config.json").read_text())
    assert written["eos_token_id"] == list(tokenizer.stop_ids)
    assert written["pad_token_id"] == tokenizer.special_tokens["<|endoftext|>"]


@pytest.fixture(scope="module")
def pythia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pythia")
    model = write_gpt_neox(folder / "model")
    return run("pythia-160m", folder, model, write_tldr(folder))


@pytest.mark.slow
def test_pythia(pythia: Path):
    check_stages(pythia, "pythia-160m")
    check_responses(pythia, "compare")
    tokenizer = Tokenizer.load(pythia / "ppo/model")
    assert tokenizer.spec.chat_template == PLAIN
    assert tokenizer.stop_ids == (tokenizer.eos_id,)
    assert tokenizer.pad_id == tokenizer.special_tokens["<|padding|>"]


@pytest.mark.slow
def test_pythia_on_dialogues(tmp_path: Path):
    model = write_gpt_neox(tmp_path / "model")
    out = run("pythia-160m", tmp_path, model, write_hh(tmp_path))
    check_stages(out, "pythia-160m")
