"""Commands and recipes with a GGUF file as their model, on what the shrunken pipeline left."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from align.cli import main
from align.io.directory import load_network
from align.io.location import locate
from align.io.manifest import read_manifest, weights_fingerprint


@pytest.fixture
def file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The GGUF file of the pipeline's SFT model."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    assert main(["export", str(run / "sft"), "--out", str(tmp_path / "exported"), "--format", "gguf"]) == 0
    return tmp_path / "exported" / "model.gguf"


@pytest.mark.parametrize("inside", [False, True], ids=["file", "directory"])
def test_samples_equal_those_of_the_model_directory(
    file: Path, run: Path, inside: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for model in (file.parent if inside else file, run / "sft"):
        capsys.readouterr()
        assert main(["generate", str(model), "--prompt", "Tell me a tale.", "--max_new_tokens", "8", "--json"]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1]


def test_an_export_has_its_weights(file: Path, run: Path, tmp_path: Path) -> None:
    assert main(["export", str(file), "--out", str(tmp_path / "again")]) == 0
    again, source = load_network(tmp_path / "again"), load_network(run / "sft/model")
    assert again.config == source.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in source.state_dict().items())
    assert read_manifest(tmp_path / "again")["gguf"]["file"] == str(file)


def test_an_adapter_trained_on_it_opens_in_peft(file: Path, run: Path, recipes: Path, tmp_path: Path) -> None:
    """Network and tokenizer from the file; the adapter names the directory that it was converted to."""
    command = ["fit", "--config", str(recipes / "dpo.yaml"), "--run", str(run)]
    command += [f"--trainer.default_root_dir={tmp_path / 'dpo'}", f"--model.init_args.init_from={file}"]
    command += [f"--data.init_args.tokenizer={file}", "--model.init_args.lora={rank: 2}"]
    assert main(command) == 0
    base = locate(file)
    for folder in ("adapter", "model"):
        parent = read_manifest(tmp_path / "dpo" / folder)["parent"]
        assert (parent["directory"], parent["weights"]) == (str(base), weights_fingerprint(base))
    peer = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "dpo/adapter")
    assert peer.peft_config["default"].base_model_name_or_path == str(base)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        merged = load_network(tmp_path / "dpo/model").eval()(ids)
        assert (peer(ids).logits - merged).abs().max() < 1e-4
