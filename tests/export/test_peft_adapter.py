"""Adapters that peft wrote, merged by us and by peft."""

import json

import peft
import pytest
import torch
from export_models import GPT2, write_model
from naming import naming
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from align.export import peft_adapter
from align.export.export_settings import ExportSettings
from align.export.source import open_source
from align.export.write_export import Check, export
from align.io.adapter_directory import load_adapter
from align.io.directory import load_network
from align.io.manifest import ADAPTER_CONFIG as ADAPTER
from align.io.manifest import ADAPTER_WEIGHTS as WEIGHTS
from align.io.manifest import weights_fingerprint, write_manifest
from align.model.gpt import GPT, ScalarGPT

UNSUPPORTED = ("target_parameters", "trainable_token_indices", "layer_replication", "ensure_weight_tying", "of_later")
CHANGED_BASE = ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
IDS = torch.arange(7, 47)[None]
ATTENTION = ["q_proj", "v_proj"]
NEOX = {"norm": "layernorm", "feed_forward": "gelu_exact", "qkv_bias": True, "bias": True, "rope_fraction": 0.5} | {
    "parallel_residual": True,
    "tied_embeddings": False,
}


def adapted(base, directory, **options):
    """An adapter with random weights in both matrices, and the model under it."""
    kind = AutoModelForSequenceClassification if options.get("task_type") == "SEQ_CLS" else AutoModelForCausalLM
    torch.manual_seed(4)
    options = {"r": 4, "lora_alpha": 12, "target_modules": ATTENTION, **options}
    model = peft.get_peft_model(kind.from_pretrained(base), peft.LoraConfig(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(directory)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {}),
        ({"kv_heads": 2}, {"use_rslora": True, "target_modules": "all-linear"}),
        ({}, {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
        ({"tied_embeddings": False}, {"modules_to_save": ["lm_head"]}),
        ({}, {"modules_to_save": ["embed_tokens"]}),
        ({}, {"modules_to_save": ["lm_head"]}),
        ({}, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ({}, {"target_modules": [*ATTENTION, "embed_tokens"]}),
        ({}, {"target_modules": [*ATTENTION, "lm_head"]}),
        ({}, {"init_lora_weights": "orthogonal", "layers_to_transform": [1], "exclude_modules": ["v_proj"]}),
        ({"qkv_bias": True}, {"bias": "lora_only"}),
        ({"kv_heads": 2}, {"use_dora": True, "use_rslora": True}),
        (GPT2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
        (GPT2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        (NEOX, {"target_modules": ["query_key_value"], "bias": "lora_only"}),
        (NEOX, {"target_modules": "all-linear", "use_dora": True}),
    ],
    ids=[
        *("plain", "rank-stabilised", "patterns", "saved head", "saved embedding, tied", "saved head, tied"),
        *("saved embedding and head, tied", "embedding, tied", "head, tied", "some layers"),
        *("biases", "dora", "gpt2 dora", "gpt2", "gpt-neox, biases", "gpt-neox, dora"),
    ],
)
def test_merged_as_peft_does(make, tmp_path, shape, options):
    base = make("base", **shape)
    theirs = adapted(base, tmp_path / "adapter", **options)
    source = open_source(str(tmp_path / "adapter"))
    assert (source.network(IDS) - theirs(IDS).logits).abs().max() < 1e-3
    assert (source.network(IDS) - open_source(str(base)).network(IDS)).abs().max() > 0.1
    assert source.manifest["parent"]["directory"] == str(base)


@torch.no_grad()
def test_a_reward_adapter_brings_its_head(make, tmp_path):
    theirs = adapted(make("base", scalar=True), tmp_path / "adapter", task_type="SEQ_CLS")
    network = open_source(str(tmp_path / "adapter")).network
    assert isinstance(network, ScalarGPT)
    assert abs(network(IDS, torch.tensor([40]))[0] - theirs(IDS).logits[0, 0]) < 1e-4


def changed(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"peft_type": "IA3"}, ["adapter_config.json", "peft_type", "IA3", "LORA"]),
        ({"use_qalora": True}, ["adapter_config.json", "use_qalora", True]),
        *(({name: 1}, ["adapter_config.json", name, 1]) for name in UNSUPPORTED),
        *(({"init_lora_weights": name}, ["adapter_config.json", "init_lora_weights", name]) for name in CHANGED_BASE),
        ({"r": 0}, ["adapter_config.json", "r", 0]),
        ({"base_model_name_or_path": None}, ["base_model_name_or_path", "''", "--base"]),
        ({"base_model_name_or_path": "/no/such/place"}, ["base_model_name_or_path", "/no/such/place"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_no_lora(make, tmp_path, fields, named):
    adapted(make("base"), tmp_path / "adapter")
    changed(tmp_path / "adapter" / ADAPTER, **fields)
    with pytest.raises((ValueError, FileNotFoundError), match=naming(*named)):
        open_source(str(tmp_path / "adapter"))


def test_another_base_and_a_cut_file_are_named(make, tmp_path):
    adapted(make("base"), tmp_path / "adapter")
    with pytest.raises(ValueError, match=naming("self_attn.q_proj", "[32, 32]", "[64, 64]")):
        open_source(str(tmp_path / "adapter"), base=str(make("other", width=64)))
    path = tmp_path / "adapter" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=naming(path)):
        open_source(str(tmp_path / "adapter"))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=naming(path)):
        open_source(str(tmp_path / "adapter"))


def test_verify_asks_peft(make, tmp_path, monkeypatch):
    """A merge into a tied matrix, which changes both embedding and output, equals its export but not what peft does."""
    base = make("base")
    adapted(base, tmp_path / "adapter", modules_to_save=["embed_tokens"])
    checked = Check(["The fox"], max_new_tokens=8)
    for settings in (ExportSettings(), ExportSettings(format="gguf", dtype="float16")):
        found = export(open_source(str(tmp_path / "adapter")), tmp_path / "out", settings, checked=checked)
        assert abs(found["verification"]["peft"]) < 1e-6
    monkeypatch.setattr(peft_adapter, "_unties", lambda stored, network: False)
    with pytest.raises(ValueError, match=naming("peft", "0.0001")):
        export(open_source(str(tmp_path / "adapter")), tmp_path / "wrong", ExportSettings(), checked=checked)
    assert not (tmp_path / "wrong").exists()


def test_verify_asks_peft_for_scores(make, tmp_path):
    adapted(make("base", scalar=True), tmp_path / "adapter", task_type="SEQ_CLS")
    checked = Check(["The fox", "Say 12."])
    found = export(open_source(str(tmp_path / "adapter")), tmp_path / "out", ExportSettings(), checked=checked)
    assert found["verification"]["peft"] < 1e-4


def test_a_base_that_changed_is_refused(make, tmp_path, tokenizer):
    """An adapter that records its base's weights is merged into no other."""
    base = make("base")
    adapted(base, tmp_path / "adapter")
    recorded = weights_fingerprint(base)
    write_manifest(tmp_path / "adapter", {"stage": "sft", "parent": {"directory": str(base), "weights": recorded}})
    moved = base.rename(tmp_path / "moved")
    assert open_source(str(tmp_path / "adapter"), base=str(moved)).adapter.base == moved
    network = load_network(moved)
    with torch.no_grad():
        network.model.norm.weight[0] += 1
    other = write_model(tmp_path / "other", network, tokenizer)
    named = (tmp_path / "adapter", recorded[:12], other, weights_fingerprint(other)[:12])
    with pytest.raises(ValueError, match=naming(*named)):
        open_source(str(tmp_path / "adapter"), base=str(other))
    with pytest.raises(ValueError, match=naming(*named)):
        load_adapter(tmp_path / "adapter", GPT, base=other)
