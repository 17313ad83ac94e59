"""``--engine`` of the commands that sample batches, with a fake of vLLM's server."""

import json
from pathlib import Path

import pytest
from fake_engines import serving

from align.cli import main
from align.engines import VLLM, Ours
from align.engines.loading import load_engine
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("engine")
    (made / "model").mkdir()
    tokenizer = train_tokenizer(["ab ab"], vocab_size=263)
    tokenizer.save(made / "model")
    network = GPT(GPTConfig(vocab_size=263, layers=1, heads=2, width=16, ff_width=16, context=64, init_std=0.3))
    network.initialise(0)
    ids = {"bos_id": tokenizer.bos_id, "eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
    save_network(network, made / "model", **ids)
    (made / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in "abc"))
    return made


@pytest.mark.parametrize("form", ["mapping", "file"])
def test_generate_with_another_engine(folder: Path, capsys, form):
    words = ["generate", str(folder / "model"), "--prompts", str(folder / "prompts.jsonl"), "--json", "--n", "2"]
    words += ["--max_new_tokens", "5"]
    assert main(words) == 0
    ours = capsys.readouterr().out
    with serving(context=64) as (server, address):
        settings = json.dumps({"class_path": "VLLM", "init_args": {"addresses": [address]}})
        if form == "file":
            (folder / "engine.yaml").write_text(settings)
        assert main([*words, "--engine", settings if form == "mapping" else str(folder / "engine.yaml")]) == 0
    assert capsys.readouterr().out == ours
    assert len(server.requests) == 1 + 6  # the probe of the weights


def test_engines_by_name():
    assert load_engine(None) == Ours()
    assert load_engine("VLLM") == VLLM()
    assert load_engine("{class_path: VLLM, init_args: {timeout: 5}}") == VLLM(timeout=5.0)
    assert VLLM(dtype="bfloat16").identity != VLLM().identity
    assert VLLM(timeout=5.0).identity == VLLM().identity
    assert not Ours().identity


@pytest.mark.parametrize("name", ["vlm", "{class_path: VLLM, init_args: {timeout: 0}}", "nowhere.yaml", "GAE", "[1"])
def test_there_is_no_such_engine(folder: Path, capsys, name):
    assert main(["generate", str(folder / "model"), "--prompt", "a", "--engine", name]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert "VLLM" in error
