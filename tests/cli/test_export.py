"""``align export`` as it is typed."""

import json
import sys

import pytest
import torch
from naming import error_line, names

from align.cli import main
from align.io.directory import save_network
from align.io.manifest import read_manifest, write_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import train_tokenizer


@pytest.fixture
def model(tmp_path):
    tokenizer = train_tokenizer(["The fox and the dog. " * 9], vocab_size=277)
    torch.manual_seed(0)
    network = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, layers=1, heads=2, width=32, context=64))
    directory = tmp_path / "run" / "model"
    tokenizer.save(directory)
    save_network(network, directory, bos_id=tokenizer.bos_id, eos_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    write_manifest(directory, {"stage": "sft", "step": 1, "metrics": {}})
    return directory


def test_export_verify_and_json(model, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "letters_judge.py").write_text(
        "def score(prompts, responses):\n    return [len(r) for r in responses]\n"
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("The fox", "the dog", "The")))
    out = tmp_path / "out"
    args = ["--format", "gguf", "--dtype", "float16", "--verify", "--prompts", str(prompts), "--limit", "2"]
    args += ["--judge", "letters_judge:score", "--max-new-tokens", "8", "--json", "--license", "mit"]
    assert main(["export", str(model.parent), "--out", str(out), *args]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["dtype"], told["verification"]["prompts"]) == ("gguf", "float16", 2)
    assert told["files"] == {"model.gguf": (out / "model.gguf").stat().st_size}
    assert read_manifest(out)["export"]["verification"] == told["verification"]


def test_what_is_printed(model, tmp_path, capsys):
    assert main(["export", str(model), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert names(printed, tmp_path / "out", "hf", "auto", 1)
    assert names(printed, "--verify")


@pytest.mark.parametrize(
    ("args", "code", "named"),
    [
        (["--format", "gguf", "--quantize", "int8"], 2, ["quantize", "int8", "format", "gguf"]),
        (["--max_shard_size", "lots"], 2, ["lots", "500MB"]),
        (["--max_shard_size", "0.1B"], 2, ["0.1B"]),
        (["--judge", "sandbox"], 2, ["--judge", "--verify"]),
        (["--verify", "--limit", "0"], 2, ["limit", 0]),
        (["--data_cards", "none.md"], 2, ["--data_cards", "none.md"]),
        (["--quantise", "int8"], 2, ["--quantise", "quantize"]),
        (["--best", "val/loss"], 1, ["--best"]),
        (["--quantize", "gptq", "--calibration", "none.jsonl"], 1, ["none.jsonl"]),
        (["--quantize", "gptq", "--calibration", "BAD"], 1, ["bad.jsonl", 2, "text"]),
    ],
)
def test_mistakes(model, tmp_path, capsys, args, code, named):
    (tmp_path / "bad.jsonl").write_text('{"text": "The fox"}\n{"words": 1}\n')
    args = [arg.replace("BAD", str(tmp_path / "bad.jsonl")) for arg in args]
    assert main(["export", str(model), "--out", str(tmp_path / "out"), *args]) == code
    error_line(capsys, *named)
    assert not (tmp_path / "out").exists()


def test_no_model_there(model, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    for place in ("nowhere", "photos"):
        assert main(["export", str(tmp_path / place), "--out", str(tmp_path / "out")]) == 1
        error_line(capsys, tmp_path / place)


@pytest.mark.parametrize(
    ("library", "args"),
    [
        ("gguf", ["--format", "gguf"]),
        ("xllamacpp", ["--format", "gguf", "--verify"]),
        ("torchao", ["--quantize", "int8"]),
        ("transformers", ["--verify"]),
    ],
)
def test_a_missing_library_names_its_extra(model, tmp_path, capsys, monkeypatch, library, args):
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["export", str(model), "--out", str(tmp_path / "out"), *args]) == 1
    error_line(capsys, library, 'pip install "lightning-align[export]"')
    assert not (tmp_path / "out").exists()


def test_chats_and_pairs_calibrate_too():
    from align.cli.export import _text

    turns = [{"role": "user", "content": "a"}]
    answer = [{"role": "assistant", "content": "b"}]
    assert _text({"messages": turns + answer}) == turns + answer
    assert _text({"prompt": turns, "chosen": answer, "rejected": []}) == turns + answer
    assert _text({"prompt": "a", "completion": "b"}) == "ab"
