"""Which configurations have a Hugging Face equivalent, and which config.json are supported."""

import json
from dataclasses import replace

import pytest

from align.io.families import family_of, why_no_twin
from align.io.location import read_config
from align.model.config import GPTConfig
from align.model.rope_scaling import Llama3Scaling

GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "qkv_bias": True, "bias": True}
LLAMA_FILE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GPT2_FILE = {"model_type": "gpt2", "vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def config_file(directory, **fields):
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


@pytest.mark.parametrize(
    ("settings", "architecture"),
    [
        ({}, "LlamaForCausalLM"),
        ({"qkv_bias": True, "bias": True}, "LlamaForCausalLM"),
        ({"rope_scaling": Llama3Scaling()}, "LlamaForCausalLM"),
        ({"qkv_bias": True}, "Qwen2ForCausalLM"),
        ({"qk_norm": "head", "head_width": 48}, "Qwen3ForCausalLM"),
        (GPT2, "GPT2LMHeadModel"),
        (GPT2 | {"tied_embeddings": False}, "GPT2LMHeadModel"),
    ],
)
def test_twin(settings, architecture):
    config = GPTConfig(**settings)
    assert family_of(config).architecture == architecture
    assert why_no_twin(config) is None


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"norm_placement": "post"}, ("LlamaForCausalLM", "norm_placement", "'post'", "'pre'")),
        ({"positions": "sinusoidal"}, ("LlamaForCausalLM", "positions", "'sinusoidal'", "'rope'")),
        ({"bias": True}, ("LlamaForCausalLM", "qkv_bias", "False", " bias", "True")),
        ({"qk_norm": "head", "qkv_bias": True}, ("qk_norm", "'head'", "'none'")),
        (GPT2 | {"qk_norm": "head"}, ("GPT2LMHeadModel", "qk_norm", "'head'", "'none'")),
        (GPT2 | {"kv_heads": 2}, ("GPT2LMHeadModel", "kv_heads", "2", " heads", "6")),
        (GPT2 | {"head_width": 8}, ("GPT2LMHeadModel", "head_width", "8", "384", "6")),
        (GPT2 | {"bias": False}, ("GPT2LMHeadModel", " bias", "False", "True")),
        ({"norm_offset": True}, ("LlamaForCausalLM", "norm_offset", "True", "False")),
        ({"norm_placement": "output"}, ("norm_placement", "'output'", "'pre'")),
        ({"rope_fraction": 0.5}, ("LlamaForCausalLM", "rope_fraction", "0.5", "1.0")),
    ],
)
def test_no_twin(settings, parts):
    config = GPTConfig(**settings)
    assert family_of(config).architecture == "AlignGPT"
    assert all(part in why_no_twin(config) for part in parts)


def test_older_spelling_of_rope(tmp_path):
    """Before transformers 5 the RoPE base was beside rope_scaling; the oldest files say ``type``."""
    scaling = {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    config = read_config(config_file(tmp_path, **LLAMA_FILE, rope_theta=500.0, rope_scaling=scaling))
    assert config.rope_theta == 500.0
    assert config.rope_scaling == Llama3Scaling(factor=8.0, original_context=16)


def test_defaults_of_files_that_are_silent(tmp_path):
    """transformers' own: eps 1e-6, base 10000, no biases, an untied head (Llama); 4 times the width, tied (GPT-2)."""
    config = read_config(config_file(tmp_path, **LLAMA_FILE))
    assert config == GPTConfig(
        vocab_size=40, width=32, ff_width=24, layers=2, heads=4, context=64, norm_eps=1e-6, tied_embeddings=False
    )
    config = read_config(config_file(tmp_path, **GPT2_FILE))
    expected = GPTConfig(vocab_size=40, width=32, layers=2, heads=4, context=64, dropout=0.1, **GPT2)
    assert config == expected
    assert config.resolved_ff_width == 128


WINDOWS = {"use_sliding_window": True, "sliding_window": 8}
QWEN2_FILE = LLAMA_FILE | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
QWEN3_FILE = LLAMA_FILE | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (LLAMA_FILE, {"model_type": "phi3"}, "model_type.*'phi3'.*llama.*qwen2.*qwen3.*gpt2"),
        (LLAMA_FILE, {"model_type": "gemma"}, "model_type.*'gemma'"),
        (LLAMA_FILE, {"model_type": "qwen3_moe"}, "model_type.*'qwen3_moe'"),
        (LLAMA_FILE, {"model_type": None}, "model_type"),
        (
            LLAMA_FILE,
            {"architectures": ["LlamaForTokenClassification"]},
            "LlamaForTokenClassification.*LlamaForCausalLM",
        ),
        (LLAMA_FILE, {"quantization_config": {"quant_method": "gptq"}}, "quantization_config.*gptq"),
        (LLAMA_FILE, {"hidden_act": "gelu"}, "hidden_act.*'gelu'.*'silu'"),
        (LLAMA_FILE, {"hidden_size": None}, "hidden_size"),
        (LLAMA_FILE, {"hidden_size": "32"}, "hidden_size.*'32'"),
        (LLAMA_FILE, {"num_key_value_heads": 3}, r"kv_heads\D*3\b.*\bheads\D*4\b"),
        (LLAMA_FILE, {"rms_norm_eps": "small"}, ""),
        (LLAMA_FILE, {"attention_bias": True}, "attention_bias.*True.*mlp_bias.*False"),
        (LLAMA_FILE, {"mlp_bias": True}, "attention_bias.*False.*mlp_bias.*True"),
        (LLAMA_FILE, {"rope_scaling": DYNAMIC}, r"rope_scaling\.rope_type.*'dynamic'.*'default'.*'llama3'"),
        (LLAMA_FILE, {"rope_parameters": {"rope_type": "linear"}}, r"rope_parameters\.factor"),
        (LLAMA_FILE, {"rope_parameters": {"rope_type": "yarn", "beta": 1}}, r"rope_parameters\.beta"),
        (LLAMA_FILE, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"rope_scaling\.high_freq_factor"),
        (LLAMA_FILE, {"rope_parameters": {"full_attention": {}}}, r"rope_parameters\.full_attention.*\{\}"),
        (LLAMA_FILE, {"rope_parameters": "llama3"}, "rope_parameters.*'llama3'"),
        (LLAMA_FILE, {"partial_rotary_factor": 0.5}, r"partial_rotary_factor.*0\.5.*1\.0"),
        (
            QWEN2_FILE,
            WINDOWS | {"layer_types": ["full_attention", "chunked_attention"]},
            "layer_types.*'chunked_attention'",
        ),
        (QWEN2_FILE, WINDOWS | {"layer_types": ["full_attention"]}, "layer_types.*2 layers"),
        (QWEN3_FILE, {"attention_bias": True}, "attention_bias.*True.*False"),
        (GPT2_FILE, {"activation_function": "gelu"}, "activation_function.*'gelu'.*'gelu_new'"),
        (GPT2_FILE, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx.*True"),
        (GPT2_FILE, {"add_cross_attention": True}, "add_cross_attention.*True.*False"),
        ({"model_type": "align_gpt", "gpt": {"widht": 32}}, {}, "'widht'.*'width'"),
        ({"model_type": "align_gpt", "gpt": [1]}, {}, r"\bgpt\b.*\[1\]"),
    ],
    ids=str,
)
def test_unsupported_config(tmp_path, file, change, message):
    """Each error is one line that names the file and the field."""
    with pytest.raises(ValueError, match=rf"config\.json.*{message}") as error:
        read_config(config_file(tmp_path, **file | change))
    assert "\n" not in str(error.value)


def test_no_settings_are_lost_on_the_way(tmp_path):
    """Settings without a Hugging Face name (embedding_std) are kept; derived widths stay derived."""
    config = GPTConfig(embedding_std=1.0, init_std=0.01, dropout=0.25, rope_theta=5.0)
    for shape in (config, replace(config, qkv_bias=True), replace(config, qk_norm="head")):
        file = {"model_type": family_of(shape).model_type} | family_of(shape).write(shape)
        assert read_config(config_file(tmp_path, **file)) == shape
