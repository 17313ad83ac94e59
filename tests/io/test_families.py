"""Which configurations have a Hugging Face equivalent, and which config.json are supported."""

import json
from dataclasses import replace

import pytest

from align.io.families import family_of, why_no_twin
from align.io.location import read_config
from align.model.config import GPTConfig, RopeScaling

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
        ({"rope_scaling": RopeScaling()}, "LlamaForCausalLM"),
        ({"qkv_bias": True}, "Qwen2ForCausalLM"),
        ({"qk_norm": True, "head_width": 48}, "Qwen3ForCausalLM"),
        (GPT2, "GPT2LMHeadModel"),
        (GPT2 | {"tied_embeddings": False}, "GPT2LMHeadModel"),
    ],
)
def test_twin(settings, architecture):
    config = GPTConfig(**settings)
    assert family_of(config).architecture == architecture
    assert why_no_twin(config) is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"norm_placement": "post"}, "LlamaForCausalLM, but norm_placement is 'post' (needs 'pre')"),
        ({"positions": "sinusoidal"}, "LlamaForCausalLM, but positions is 'sinusoidal' (needs 'rope')"),
        ({"bias": True}, "LlamaForCausalLM, but qkv_bias is False and bias is True (needs both or neither)"),
        ({"qk_norm": True, "qkv_bias": True}, "but qk_norm is True (needs False)"),
        (GPT2 | {"qk_norm": True}, "GPT2LMHeadModel, but qk_norm is True (needs False)"),
        (GPT2 | {"kv_heads": 2}, "GPT2LMHeadModel, but kv_heads is 2 (needs as many as heads, 6)"),
        (GPT2 | {"head_width": 8}, "GPT2LMHeadModel, but head_width is 8 (needs width / heads, 384 / 6)"),
        (GPT2 | {"bias": False}, "GPT2LMHeadModel, but bias is False (needs True)"),
        ({"width": 100, "head_width": 16}, "LlamaForCausalLM, but width is 100 (needs a multiple of heads, 6)"),
    ],
)
def test_no_twin(settings, reason):
    config = GPTConfig(**settings)
    assert family_of(config).architecture == "AlignGPT"
    assert reason in why_no_twin(config)


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
    assert config.rope_scaling == RopeScaling(factor=8.0, original_context=16)


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


QWEN2_FILE = LLAMA_FILE | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
QWEN3_FILE = LLAMA_FILE | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (LLAMA_FILE, {"model_type": "mistral"}, "model_type is 'mistral'; supported: llama, qwen2, qwen3, gpt2"),
        (LLAMA_FILE, {"model_type": "gemma"}, "model_type is 'gemma'"),
        (LLAMA_FILE, {"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'"),
        (LLAMA_FILE, {"model_type": None}, "model_type is missing"),
        (LLAMA_FILE, {"architectures": ["LlamaForTokenClassification"]}, "supported: LlamaForCausalLM"),
        (LLAMA_FILE, {"quantization_config": {"quant_method": "gptq"}}, "supported: unquantized weights"),
        (LLAMA_FILE, {"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: 'silu'"),
        (LLAMA_FILE, {"hidden_size": None}, "hidden_size is missing"),
        (LLAMA_FILE, {"hidden_size": "32"}, "width is '32'; it must be an integer, at least 1"),
        (LLAMA_FILE, {"num_key_value_heads": 3}, "kv_heads is 3; it must be a divisor of heads (4)"),
        (LLAMA_FILE, {"rms_norm_eps": "small"}, "config.json: "),
        (LLAMA_FILE, {"attention_bias": True}, "attention_bias is True; supported: the same as mlp_bias, False"),
        (LLAMA_FILE, {"mlp_bias": True}, "attention_bias is False; supported: the same as mlp_bias, True"),
        (LLAMA_FILE, {"rope_scaling": YARN}, "rope_scaling.rope_type is 'yarn'; supported: 'default' or 'llama3'"),
        (LLAMA_FILE, {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.rope_type is 'linear'"),
        (LLAMA_FILE, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.high_freq_factor is miss"),
        (LLAMA_FILE, {"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention is {}"),
        (LLAMA_FILE, {"rope_parameters": "llama3"}, "rope_parameters is 'llama3'; supported: an object or null"),
        (LLAMA_FILE, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; supported: 1.0"),
        (QWEN2_FILE, {"use_sliding_window": True}, "use_sliding_window is True; supported: False"),
        (QWEN2_FILE, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is 'sliding_attention'"),
        (QWEN3_FILE, {"attention_bias": True}, "attention_bias is True; supported: False"),
        (GPT2_FILE, {"activation_function": "gelu"}, "activation_function is 'gelu'; supported: 'gelu_new'"),
        (GPT2_FILE, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        (GPT2_FILE, {"add_cross_attention": True}, "add_cross_attention is True; supported: False"),
        ({"model_type": "align_gpt", "gpt": {"widht": 32}}, {}, "unknown setting 'widht'; did you mean 'width'?"),
        ({"model_type": "align_gpt", "gpt": [1]}, {}, "gpt is [1]; supported: an object or null"),
    ],
    ids=str,
)
def test_unsupported_config(tmp_path, file, change, message):
    """Each error names the file and the field."""
    with pytest.raises(ValueError, match="config.json") as error:
        read_config(config_file(tmp_path, **file | change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_settings_are_lost_on_the_way(tmp_path):
    """Settings without a Hugging Face name (embedding_std) are kept; derived widths stay derived."""
    config = GPTConfig(embedding_std=1.0, init_std=0.01, dropout=0.25, rope_theta=5.0)
    for shape in (config, replace(config, qkv_bias=True), replace(config, qk_norm=True)):
        file = {"model_type": family_of(shape).model_type} | family_of(shape).write(shape)
        assert read_config(config_file(tmp_path, **file)) == shape
