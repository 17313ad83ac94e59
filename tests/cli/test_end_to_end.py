"""What the pipeline leaves behind: run folders, model directories that transformers opens, samples, manifests."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from naming import error_line

from align.cli import main
from align.generation import responses
from align.generation.sampling import response_seed
from align.io.directory import load_network
from align.io.manifest import read_manifest, weights_fingerprint
from align.tokenizer import Tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Tell me a happy tale of Dora the goat, please! \U0001f410"},
    {"role": "assistant", "content": "Dora the goat danced.\nShe was happy."},
    {"role": "user", "content": "More"},
]


def test_run_folder(run: Path):
    names = {path.name for path in (run / "pretrain").iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "model", "tensorboard"} <= names
    assert {path.name for path in (run / "pretrain/checkpoints").iterdir()} == {"last.ckpt", "last-1.ckpt"}
    assert yaml.safe_load((run / "pretrain/config.yaml").read_text())["run"] == str(run)


@pytest.mark.parametrize(
    ("stage", "some"),
    [
        ("pretrain", {"train/loss", "val/loss", "val/bits_per_byte", "throughput/tokens_per_s"}),
        ("reward", {"train/accuracy", "val/ece", "val/score_std"}),
        ("dpo", {"train/logprob_chosen", "val/margin", "policy/kl"}),
    ],
)
def test_every_logged_metric_stands_in_the_glossary(run: Path, stage: str, some: set[str]):
    glossary = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text()
    with (run / stage / "metrics.csv").open(newline="") as file:
        columns = csv.DictReader(file).fieldnames
    logged = [name for name in columns or [] if name != "step"]
    assert some <= set(logged)
    assert [name for name in logged if f"`{name}`" not in glossary] == []


def test_samples_at_each_validation(run: Path):
    lines = [json.loads(line) for line in (run / "sft/samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 3, 6]
    assert {"prompt", "text", "tokens", "finished", "sampling"} <= set(lines[0])


def test_manifest_tells_the_lineage(run: Path):
    manifest = read_manifest(run / "sft/model")
    assert manifest["stage"] == "sft"
    assert manifest["parent"] == {
        "directory": str(run / "pretrain/model"),
        "weights": weights_fingerprint(run / "pretrain/model"),
        "stage": "pretrain",
    }
    assert manifest["tokenizer"] == Tokenizer.load(run / "tokenizer").fingerprint
    assert str(run / "data/sft_train.jsonl") in manifest["data"]
    assert manifest["recipe"]["model"]["class_path"] == "align.algorithms.SFT"
    assert "# sft" in (run / "sft/model/README.md").read_text()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_transformers_gives_our_logits_and_our_ids(run: Path, dtype: torch.dtype, tolerance: float):
    """As a user would: AutoModelForCausalLM and AutoTokenizer on the directory, chat template included."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = run / "sft/model"
    ours, tokenizer = load_network(directory, dtype=dtype).eval(), Tokenizer.load(directory)
    theirs, their_tokenizer = (
        AutoModelForCausalLM.from_pretrained(directory, dtype=dtype),
        AutoTokenizer.from_pretrained(directory),
    )
    ids = tokenizer.render_chat(CHAT, add_generation_prompt=True).ids
    assert their_tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"] == ids
    text = CHAT[1]["content"]
    assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text)
    with torch.no_grad():
        difference = (ours(torch.tensor([ids])) - theirs(torch.tensor([ids])).logits).abs().max().item()
    assert difference <= tolerance


def test_alignment_starts_from_the_same_model_and_the_same_labels(run: Path):
    """Reward model and DPO learn from the pairs of the SFT model's answers, PPO from the reward model."""
    sft, pairs = weights_fingerprint(run / "sft/model"), str(run / "preferences/train.jsonl")
    told = json.loads((run / "preferences/train.jsonl.meta.json").read_text())
    assert told["model"]["weights"] == sft
    for stage in ("reward", "dpo", "ppo"):
        manifest = read_manifest(run / stage / "model")
        assert manifest["parent"]["weights"] == sft
        assert (pairs in manifest["data"]) == (stage != "ppo")
    assert not (run / "grpo").exists(), "optional"


def test_grpo_runs_when_it_is_named(run: Path, recipes: Path):
    try:
        assert main(["run", str(recipes), "--out", str(run), "--only", "grpo"]) == 0
        assert read_manifest(run / "grpo/model")["recipe"]["model"]["init_args"]["estimator"]["class_path"].endswith(
            ".GRPO"
        )
    finally:
        shutil.rmtree(run / "grpo", ignore_errors=True)


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo"])
def test_the_samples_stages_scored_held_out_prompts(run: Path, stage: str):
    lines = [json.loads(line) for line in (run / f"samples/{stage}.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(0 <= line["reward"] <= 1 for line in lines)


def test_greedy_generation_is_transformers_greedy_generation(run: Path, capsys: pytest.CaptureFixture[str]):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = run / "sft/model"
    prompt = "Tell me a happy tale of a goat named Dora."
    command = ["generate", str(directory), "--prompt", prompt, "--temperature", "0", "--max-new-tokens", "9", "--json"]
    assert main(command) == 0
    sample = json.loads(capsys.readouterr().out)
    assert set(sample) == {"prompt", "text", "tokens", "finished"}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    chat = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=9, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert sample["text"] == tokenizer.decode(out, skip_special_tokens=True)
    assert sample["tokens"] == len(out)


def test_a_sample_draws_the_same_random_numbers_in_any_batch(run: Path, monkeypatch: pytest.MonkeyPatch):
    """Sample k of prompt i draws from a hash of (seed, i, k); only the rounding of its logits depends on the batch."""
    drawn: list[tuple[tuple[int, ...], int]] = []
    real = responses.generate

    def generate(network, prompts, *rest, seeds, **more):
        drawn.extend(zip(map(tuple, prompts), seeds, strict=True))
        return real(network, prompts, *rest, seeds=seeds, **more)

    monkeypatch.setattr(responses, "generate", generate)
    prompts = run / "data/prompts_test.jsonl"
    command = ["generate", str(run / "sft/model"), "--prompts", str(prompts), "--json", "--n", "2", "--seed", "7"]
    found = []
    for size in ("1", "5", "64"):
        drawn.clear()
        assert main([*command, "--max_new_tokens=2", "--batch-size", size]) == 0
        found.append(list(drawn))
    assert found[0] == found[1] == found[2]
    numbers = range(len(prompts.read_text().splitlines()))
    assert [seed for _, seed in found[0]] == [
        response_seed(7, number, sample) for number in numbers for sample in (0, 1)
    ]


def test_tokenizer_encode_prints_one_json_list(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file = tmp_path / "text.txt"
    file.write_text("Dora the goat\n")
    assert main(["tokenizer", "encode", str(run / "sft/model"), "--file", str(file), "--json"]) == 0
    ids = json.loads(capsys.readouterr().out)
    assert ids == Tokenizer.load(run / "tokenizer").encode("Dora the goat\n")


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_other_verbs_leave_the_files_of_the_training_alone(run: Path, verb: str):
    """With a run's own config, as a user repeats it; what they log has a folder of its own."""
    files = {name: (run / "pretrain" / name).read_bytes() for name in ("config.yaml", "metrics.csv")}
    extra = ["--data.init_args.test", str(run / "data/pretrain_val.jsonl")]
    assert main([verb, "--config", str(run / "pretrain/config.yaml"), "--ckpt_path", "last", *extra]) == 0
    assert {name: (run / "pretrain" / name).read_bytes() for name in files} == files
    assert (run / "pretrain" / verb / "config.yaml").is_file()
    assert (run / "pretrain" / verb / "metrics.csv").is_file() == (verb != "predict")


def test_validate_reads_the_checkpoint(run: Path, recipes: Path, capsys: pytest.CaptureFixture[str]):
    command = ["validate", "--config", str(recipes / "pretrain.yaml"), "--run", str(run), "--ckpt_path", "last"]
    assert main([*command, "--trainer.default_root_dir", str(run / "pretrain")]) == 0
    assert "val/loss" in capsys.readouterr().out


def test_a_trial_step_leaves_the_model_alone(run: Path, recipes: Path):
    weights = (run / "pretrain/model/model.safetensors").read_bytes()
    command = ["fit", "--config", str(recipes / "pretrain.yaml"), "--run", str(run)]
    assert main([*command, "--trainer.fast_dev_run", "true"]) == 0
    assert (run / "pretrain/model/model.safetensors").read_bytes() == weights


def test_a_run_without_steps_is_a_mistake(run: Path, recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["fit", "--config", str(recipes / "sft.yaml"), "--run", str(run)]
    command += ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps=-1", "--trainer.max_epochs", "0"]
    assert main(command) == 2
    error_line(capsys, "align fit", "trainer.max_epochs", 0)


def test_predictions_add_up_to_the_validation_loss(run: Path, recipes: Path, tmp_path: Path):
    """The mean over predicted rows is what `align validate` logs on the same rows."""
    root = tmp_path / "predict"
    common = ["--config", str(recipes / "pretrain.yaml"), "--run", str(run), "--trainer.default_root_dir", str(root)]
    common += ["--ckpt_path", str(run / "pretrain/checkpoints/last.ckpt"), "--trainer.limit_val_batches=1.0"]
    assert main(["predict", *common]) == 0
    rows = [json.loads(line) for line in (root / "predictions.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert main(["validate", *common]) == 0
    with (root / "validate/metrics.csv").open(newline="") as file:
        logged = float(list(csv.DictReader(file))[-1]["val/loss"])
    mean = sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)
    assert mean == pytest.approx(logged, rel=1e-5)
