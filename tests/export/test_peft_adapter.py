"""Adapters that peft wrote, merged by us and by peft."""

import json

import peft
import pytest
import torch
from export_models import GPT2
from naming import naming
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from align.export.source import open_source
from align.io.manifest import ADAPTER_CONFIG as ADAPTER
from align.io.manifest import ADAPTER_WEIGHTS as WEIGHTS
from align.model.gpt import ScalarGPT

IDS = torch.arange(7, 47)[None]
ATTENTION = ["q_proj", "v_proj"]


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
    return model.merge_and_unload().eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {}),
        ({"kv_heads": 2}, {"use_rslora": True, "target_modules": "all-linear"}),
        ({}, {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
        ({"tied_embeddings": False}, {"modules_to_save": ["lm_head"]}),
        ({"qkv_bias": True}, {"bias": "lora_only"}),
        ({"kv_heads": 2}, {"use_dora": True, "use_rslora": True}),
        (GPT2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
        (GPT2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ],
    ids=["plain", "rank-stabilised", "patterns", "saved head", "biases", "dora", "gpt2 dora", "gpt2"],
)
def test_merged_as_peft_does(make, tmp_path, shape, options):
    base = make("base", **shape)
    theirs = adapted(base, tmp_path / "adapter", **options)
    source = open_source(str(tmp_path / "adapter"))
    assert (source.network(IDS) - theirs(IDS).logits).abs().max() < 1e-4
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
