"""Accuracy on pairs, in RewardBench's format: the scores are those of transformers' own sequence classifiers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from align.cli import main
from align.evaluate.reward_pairs import RankedPair, RewardPairs
from align.evaluate.task import Subject
from align.io.directory import save_network
from align.io.manifest import write_manifest
from align.model.config import GPTConfig
from align.model.gpt import ScalarGPT
from align.tokenizer import Tokenizer

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "num_labels": 1,
}
CATEGORIES = {"chat": ("one", "two"), "safety": ("three", "four", "five")}
PAIRS = [
    {"prompt": f"say {word}", "chosen": f"{word} one", "rejected": f"two {word}", "subset": subset}
    for subset, words in CATEGORIES.items()
    for word in words
]


def ours(model: Path, directory: Path) -> Path:
    """As the reward stage writes it, with a mean and a deviation of its scores."""
    tokenizer = Tokenizer.load(model)
    shape = {"layers": 1, "heads": 2, "width": 16, "ff_width": 16, "context": 64}
    network = ScalarGPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    save_network(network, directory, bos_id=tokenizer.bos_id, eos_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    tokenizer.save(directory)
    write_manifest(directory, {"stage": "reward", "reward_mean": 0.25, "reward_std": 2.0})
    return directory


def of_transformers(family: str, model: Path, directory: Path) -> Path:
    """Written by transformers alone; its chats go on after the end of the last turn, as ChatML's do."""
    import transformers

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<|end|>\n{% endfor %}"
    tokenizer.save_pretrained(directory)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = getattr(transformers, f"{family}Config")(**SHAPE, **ids)
    network = getattr(transformers, f"{family}ForSequenceClassification")(config)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):  # which transformers initialises with zeros
            torch.nn.init.normal_(parameter, std=0.4)
    network.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=["ours", "Llama", "Qwen2"])
def reward_model(request, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("reward") / "model"
    return ours(model, directory) if request.param == "ours" else of_transformers(request.param, model, directory)


@torch.no_grad()
def scores_of_transformers(directory: Path) -> np.ndarray:
    """``[P, 2]`` raw scores of chosen and rejected, one row at a time, of chats that transformers renders."""
    network, tokenizer = (
        kind.from_pretrained(directory) for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    table = []
    for pair in PAIRS:
        chats = [
            [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}]
            for side in ("chosen", "rejected")
        ]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        rows = [tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids for text in texts]
        table.append([float(network.eval()(row).logits) for row in rows])
    return np.array(table)


def test_scores_and_accuracy_are_those_of_transformers(reward_model: Path, tmp_path: Path) -> None:
    """Through the command; ours are normalised with its mean and deviation, which changes no order."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    out = tmp_path / "out"
    assert main(["eval", f"rm={reward_model}", "--pairs", str(file), "--out", str(out), "--device", "cpu"]) == 0
    theirs = scores_of_transformers(reward_model)
    assert len(np.unique(theirs)) == theirs.size
    mean, deviation = (0.25, 2.0) if (reward_model / "align.json").is_file() else (0.0, 1.0)
    items = [json.loads(line) for line in (out / "rm/samples_RewardPairs.jsonl").read_text().splitlines()]
    found = np.array([item["scores"] for item in items])
    assert found == pytest.approx((theirs - mean) / deviation, abs=1e-4)
    right = theirs[:, 0] > theirs[:, 1]
    results = json.loads((out / "rm/results.json").read_text())["results"]["RewardPairs"]
    assert results["accuracy,none"] == pytest.approx(right.mean())
    assert results["accuracy,chat"] == pytest.approx(right[:2].mean())
    assert results["accuracy,safety"] == pytest.approx(right[2:].mean())


def test_the_benchmark_finds_the_same(reward_model: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from reward_pairs import compared

    pairs = [RankedPair(pair["prompt"], pair["chosen"], pair["rejected"], pair["subset"]) for pair in PAIRS]
    found = compared(reward_model, pairs)
    assert found["other_order"] == 0
    assert found["largest_difference"] < 1e-4
    assert found["accuracy"]["align"] == found["accuracy"]["transformers"]
    assert found["accuracy"]["align"].keys() == {"all", "chat", "safety"}


def test_equal_scores_count_half(reward_model: Path, tmp_path: Path) -> None:
    pairs = [RankedPair("one", "two", "two", ""), RankedPair("one", "two", "two", "")]
    found = RewardPairs(pairs).run(Subject(reward_model, "cpu", 0, 3, tmp_path), limit=None)
    assert [(measure.name, measure.value) for measure in found.measures] == [("accuracy,none", 0.5)]
