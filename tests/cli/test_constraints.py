"""Verifiable constraints as the judge of pairs and comparisons and as the reward of GRPO, on toy models."""

import csv
import json
from pathlib import Path

import pytest

from align.cli import main
from align.sandbox.constraints import verdicts


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("constraints")
    sizes = ["--prompts", "4", "--prompts_val", "4", "--prompts_test", "6", "--prompts_heldout_kinds", "2"]
    assert main(["sandbox", "constraints", "--out", str(out), *sizes]) == 0
    return out


def test_pairs_are_scored_by_their_constraints_and_flipped(run: Path, tmp_path: Path) -> None:
    """Of eight responses of a toy, some have more than two of a frequent letter."""
    prompts = tmp_path / "prompts.jsonl"
    asked = [f'Describe {what}. Use the letter "a" no more than two times.' for what in ("a cat", "a sea", "a hat")]
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
    command = ["preferences", str(run / "sft/model"), "--prompts", str(prompts), "--keep_unfinished"]
    command += ["--judge", "constraints", "--flip_rate", "0.4", "--n", "8", "--max_new_tokens", "12"]
    assert main([*command, "--out", str(tmp_path / "pairs.jsonl")]) == 0
    records = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert records
    for record in records:
        prompt = record["prompt"][-1]["content"]
        for name in ("chosen", "rejected"):
            found = verdicts(prompt, record[name][0]["content"])
            assert record[f"score_{name}"] == sum(verdict.met for verdict in found) / len(found)
        assert record["score_chosen"] != record["score_rejected"]
    labels = json.loads((tmp_path / "pairs.jsonl.meta.json").read_text())["labels"]
    assert (labels["flip_rate"], labels["label_temperature"]) == (0.4, 0.0)


def test_a_comparison_has_accuracy_by_kind(run: Path, data: Path, tmp_path: Path) -> None:
    command = ["compare", f"sft={run / 'sft'}", f"dpo={run / 'dpo'}", "--out", str(tmp_path), "--frontier_n", "0"]
    command += ["--prompts", str(data / "prompts_test.jsonl"), "--n", "2", "--max_new_tokens", "8"]
    home = "align.compare.constraint_metrics"
    command += ["--judge", "gold=constraints_strict", "--metric", f"{home}.StrictConstraintAccuracy", f"{home}.BY_KIND"]
    assert main(command) == 0
    for model in json.loads((tmp_path / "report.json").read_text())["models"].values():
        assert model["metrics"]["StrictConstraintAccuracy"]["mean"] == model["rewards"]["gold"]["mean"]
        low, high = model["metrics"]["KindAccuracy.words_at_most"]["ci95"]
        assert 0 <= low <= high <= 1
        assert model["metrics"]["KindAccuracy.no_commas"] is None, "a held-out kind"


def test_grpo_trains_against_the_constraints(run: Path, recipes: Path, data: Path, tmp_path: Path) -> None:
    command = ["fit", "--config", str(recipes / "grpo.yaml"), "--run", str(run), "--model.init_args.reward"]
    command += [
        "constraints",
        "--model.init_args.gold",
        "constraints_strict",
        "--data.init_args.train",
        str(data / "prompts_train.jsonl"),
    ]
    command += ["--data.init_args.validation", str(data / "prompts_val.jsonl")]
    command += ["--model.init_args.policy_evaluation.judge", "constraints"]
    command += ["--trainer.default_root_dir", str(tmp_path)]
    assert main(command) == 0
    with (tmp_path / "metrics.csv").open() as file:
        rewards = [float(row["rollout/reward"]) for row in csv.DictReader(file) if row.get("rollout/reward")]
    assert rewards
    assert all(0 <= reward <= 1 for reward in rewards)
