"""Exports with a wrong tensor are refused in every precision."""

import json
from dataclasses import replace

import pytest
import torch
from naming import naming

from align.export import write_export
from align.export.export_settings import ExportSettings
from align.export.safetensors_dir import write_hf
from align.export.source import open_source
from align.export.verify import prompt_ids
from align.export.verify_llama import LlamaReading
from align.export.verify_transformers import TransformersReading
from align.export.write_export import Check, export
from align.model.gpt import GPT

SHAPE = {"qkv_bias": True, "bias": True, "kv_heads": 2, "context": 48}
PROMPTS = ["The fox", "Say 12."]
PRECISIONS = [
    {},
    {"dtype": "float16"},
    {"dtype": "bfloat16"},
    {"quantize": "int8"},
    {"format": "gguf"},
    {"format": "gguf", "dtype": "float16"},
    {"format": "gguf", "dtype": "bfloat16"},
    *({"format": "gguf", "quantize": name} for name in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")),
]


def swapped_heads(network):
    """Queries of the first two heads change places, their outputs don't."""
    rows = network.model.layers[0].self_attn.q_proj.weight.unflatten(0, (network.config.heads, -1))
    rows[:2] = rows[:2].flip(0).clone()


def dropped_bias(network):
    network.model.layers[1].self_attn.v_proj.bias.zero_()


def swapped_norms(network):
    layer = network.model.layers[0]
    first, second = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)


def other_theta(network):
    network.config = replace(network.config, rope_theta=100 * network.config.rope_theta)


@torch.no_grad()
def damaged(source, damage):
    network = GPT(source.network.config).eval()
    network.load_state_dict(source.network.state_dict())
    damage(network)
    return replace(source, network=network)


@pytest.mark.parametrize("options", PRECISIONS, ids=lambda options: "-".join(options.values()) or "plain")
def test_every_precision_refuses_a_wrong_tensor(make, tmp_path, monkeypatch, options):
    source, settings = open_source(str(make(**SHAPE))), ExportSettings(**options)
    checked = Check(PROMPTS, max_new_tokens=8)
    found = export(source, tmp_path / "whole", settings, checked=checked)["verification"]
    assert found["kl_rounded"] <= found["kl"] + 1e-6
    writer = write_export._writer
    for damage in (swapped_heads, dropped_bias, swapped_norms, other_theta):
        wrong = damaged(source, damage)
        monkeypatch.setattr(write_export, "_writer", lambda _, chosen, wrong=wrong: _of(writer(wrong, chosen), wrong))
        with pytest.raises(ValueError, match=naming("kl_rounded")):
            export(source, tmp_path / "wrong", settings, checked=checked)
        assert not (tmp_path / "wrong").exists()


def _of(write, source):
    return lambda _, directory, settings: write(source, directory, settings)


def test_generation_settings_that_end_responses_early_are_refused(make, tmp_path, monkeypatch):
    """The log-probabilities are the source's, but the token that it likes best ends a response."""
    source = open_source(str(make(**SHAPE)))
    with torch.no_grad():
        source.network.model.norm.weight *= 20  # no two tokens are nearly as likely
        row = torch.tensor([prompt_ids(source.tokenizer, PROMPTS[0])])
        likeliest = int(source.network(row)[0, -1].argmax())
    checked = Check(PROMPTS[:1], max_new_tokens=2)
    export(source, tmp_path / "whole", ExportSettings(), checked=checked)

    def write(source, directory, settings):
        write_hf(source, directory, settings)
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": likeliest}))

    monkeypatch.setattr(write_export, "_writer", lambda source, settings: write)
    with pytest.raises(ValueError, match=naming(f"token {likeliest}", "ends after 1 tokens")):
        export(source, tmp_path / "out", ExportSettings(), checked=checked)


@pytest.mark.parametrize(
    "stated", [{"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 1}, {"suppress_tokens": [7]}], ids=str
)
def test_settings_that_change_greedy_decoding_are_left_out_and_named(make, tmp_path, stated):
    """Only the source's own generation settings differ from a plain model's, and the export keeps them."""
    model = make(**SHAPE)
    file = model / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | stated | {"temperature": 0.5, "do_sample": True}))
    ((name, value),) = stated.items()
    found = export(
        open_source(str(model)), tmp_path / "out", ExportSettings(), checked=Check(PROMPTS, max_new_tokens=8)
    )
    assert found["verification"]["switched_off"] == f"{name}={value}"
    assert found["verification"]["same_text"] == 2
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())[name] == value


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_texts_that_the_log_probabilities_do_not_give_are_refused(make, tmp_path, monkeypatch, format):
    """However unsure the network is: the weights are an untrained network's, and the last token of each is another."""
    reading = TransformersReading if format == "hf" else LlamaReading
    respond = reading.respond

    def wrong(self, rows, max_new_tokens):
        found = respond(self, rows, max_new_tokens)
        return [one._replace(ids=[*one.ids[:-1], (one.ids[-1] + 7) % 100]) for one in found]

    monkeypatch.setattr(reading, "respond", wrong)
    source = open_source(str(make(**SHAPE)))
    with pytest.raises(ValueError, match=naming("responds", "log-probabilities")):
        export(source, tmp_path / "out", ExportSettings(format=format), checked=Check(PROMPTS, max_new_tokens=4))
