"""GGUF files in llama.cpp against the exported network."""

import gguf
import numpy as np
import pytest
import torch
from export_models import GPT2, SHAPE, random_network, write_model
from naming import naming

from align.export.export_settings import ExportSettings
from align.export.gguf_file import FILE, check_gguf, write_gguf
from align.export.source import open_source
from align.export.verify_llama import LlamaReading
from align.model.config import GPTConfig
from align.model.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling

SCALING = Llama3Scaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16)
LINEAR = LinearScaling(factor=3.0)
YARN = YarnScaling(factor=4.0, original_context=16)
FIXED_YARN = YarnScaling(factor=4.0, original_context=16, beta_fast=8.0, beta_slow=2.0, attention_factor=1.3)
SMOLLM3 = {"layers": 5, "no_rope_layers": (3,), "kv_heads": 2, "rope_theta": 2e6}
OLMO2 = {"norm_placement": "output", "qk_norm": "all", "kv_heads": 2}
GEMMA = {
    "norm_placement": "both",
    "norm_offset": True,
    "scale_embeddings": True,
    "feed_forward": "geglu",
    "kv_heads": 2,
    "head_width": 16,
    "window": 8,
}
GEMMA2 = GEMMA | {"layers": 3, "window_layers": (0, 2), "attention_softcap": 5.0, "logit_softcap": 10.0}
GEMMA3 = GEMMA | {"qk_norm": "head", "window_rope_theta": 50.0}
NEOX = {
    "norm": "layernorm",
    "rope_fraction": 0.5,
    "parallel_residual": True,
    "feed_forward": "gelu_exact",
    "qkv_bias": True,
    "bias": True,
    "tied_embeddings": False,
}
NETWORKS = {
    "llama": {},
    "llama, grouped, untied": {"kv_heads": 2, "tied_embeddings": False, "norm_eps": 1e-3, "rope_theta": 500000.0},
    "llama, scaled, wide heads": {"rope_scaling": SCALING, "head_width": 16},
    "llama, biases": {"qkv_bias": True, "bias": True, "kv_heads": 1},
    "llama, linear": {"rope_scaling": LINEAR},
    "llama, yarn": {"rope_scaling": YARN},
    "llama, fixed yarn": {"rope_scaling": FIXED_YARN},
    "mistral": {"heads": 5, "head_width": 6, "kv_heads": 1},
    "mistral, window of the context": {"window": 64},
    "qwen2": {"qkv_bias": True, "kv_heads": 2},
    "qwen2, untied": {"qkv_bias": True, "tied_embeddings": False},
    "qwen2, yarn": {"qkv_bias": True, "rope_scaling": YARN},
    "qwen3": {"qk_norm": "head", "kv_heads": 2, "head_width": 16},
    "qwen3, linear": {"qk_norm": "head", "rope_scaling": LINEAR},
    "smollm3": SMOLLM3,
    "smollm3, yarn": SMOLLM3 | {"rope_scaling": YARN, "tied_embeddings": False},
    "olmo2": OLMO2 | {"tied_embeddings": False},
    "olmo2, tied, yarn": OLMO2 | {"rope_scaling": YARN},
    "gemma2": GEMMA2,
    "gemma2, linear": GEMMA2 | {"rope_scaling": LINEAR},
    "gemma2, no window": GEMMA2 | {"window": None, "window_layers": None},
    "gemma3": GEMMA3 | {"layers": 7, "window_layers": (0, 1, 2, 3, 4, 6), "rope_scaling": LINEAR},
    "gemma3, windows only": GEMMA3 | {"tied_embeddings": False, "logit_softcap": 5.0, "rope_theta": 1e6},
    "gpt2": GPT2,
    "gpt2, untied": GPT2 | {"tied_embeddings": False},
    "gptneox": NEOX,
    "gptneox, in sequence, tied": NEOX | {"parallel_residual": False, "rope_fraction": 1.0, "tied_embeddings": True},
    "gptneox, linear, tanh": NEOX | {"rope_scaling": LINEAR, "feed_forward": "gelu"},
}


def written(model, directory, **options):
    source = open_source(str(model))
    settings = ExportSettings(format="gguf", **options)
    check_gguf(source, settings)
    directory.mkdir()
    write_gguf(source, directory, settings)
    return source, directory / FILE


@torch.no_grad()
def difference(source, file):
    """Largest log-prob difference over 40 random ids, by llama.cpp's hidden states, and at the end by its logits."""
    config = source.network.config
    reading = LlamaReading(file, context=config.context, vocab_size=config.vocab_size)
    ids = torch.randint(0, config.vocab_size - 5, (40,), generator=torch.Generator().manual_seed(6))
    theirs = reading.logprobs(ids.tolist(), 1)
    ours = torch.log_softmax(source.network(ids[None])[0], -1)
    # A letter, because incomplete characters are withheld with their probabilities, which are those without the bias.
    (letter, *_) = reading.tokenize("a")
    request = {"prompt": ids.tolist(), "n_predict": 1, "n_probs": config.vocab_size, "logit_bias": [[letter, 1e6]]}
    reply = reading.server.handle_completions(request | {"temperature": 0})
    last = {entry["id"]: entry["logprob"] for entry in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    reading.close()
    assert len(last) > 0.99 * config.vocab_size
    at_end = max(abs(ours[-1, number].item() - value) for number, value in last.items() if value > -100)
    return max(at_end, (ours[:-1] - theirs).abs().max().item())


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_llama_cpp_computes_what_we_compute(make, tmp_path, options):
    """Its GELU is tanh's, from a table of float16 values, hence the wider bound."""
    most = 5e-3 if "feed_forward" in options else 2e-4
    assert difference(*written(make(**options), tmp_path / "out")) < most


@pytest.mark.parametrize("name", [name for name, options in NETWORKS.items() if "feed_forward" in options])
def test_all_but_gelu_is_exact(tmp_path, tokenizer, name):
    """As above, with feed-forward layers whose last matrix is 0."""
    network = random_network(GPTConfig(**{"vocab_size": tokenizer.vocab_size + 5, **SHAPE, **NETWORKS[name]}))
    for layer in network.model.layers:
        layer.mlp.down_proj.weight.data.zero_()
    assert difference(*written(write_model(tmp_path / "model", network, tokenizer), tmp_path / "out")) < 2e-4


@pytest.mark.parametrize(
    ("options", "bits", "most"),
    [
        ({"dtype": "float16"}, 16, 0.05),
        ({"dtype": "bfloat16"}, 16, 0.5),
        ({"quantize": "q8_0"}, 8.5, 0.5),
        ({"quantize": "q5_1"}, 6, 3),
        ({"quantize": "q5_0"}, 5.5, 3),
        ({"quantize": "q4_1"}, 5, 6),
        ({"quantize": "q4_0"}, 4.5, 6),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else None,
)
def test_types(make, tmp_path, options, bits, most):
    """A block of 32 weights takes 32 times its bits and a scale of 16, in q4_1 and q5_1 a minimum of 16 too."""
    source, file = written(make(), tmp_path / "out", **options)
    assert 0 < difference(source, file) < most
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    gate = tensors["blk.0.ffn_gate.weight"]
    assert gate.n_bytes == 32 * 64 * bits / 8
    values = gguf.quants.dequantize(gate.data, gate.tensor_type).reshape(64, 32)
    stored = source.network.state_dict()["model.layers.0.mlp.gate_proj.weight"].numpy()
    assert np.abs(values - stored).max() < 0.2
    assert tensors["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_the_ends_keep_eight_bits_where_the_rest_has_four(make, tmp_path):
    _, file = written(make(tied_embeddings=False), tmp_path / "out", quantize="q4_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert {kinds["token_embd.weight"], kinds["output.weight"]} == {"Q8_0"}
    assert kinds["blk.1.attn_v.weight"] == "Q4_0"


def test_rows_that_no_block_divides_are_named(make, tmp_path):
    with pytest.raises(ValueError, match=naming("blk.0.ffn_down.weight", 48, "q8_0", 32)):
        written(make(ff_width=48), tmp_path / "out", quantize="q8_0")


def test_reward_models_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match=naming("llama.cpp", "--format hf")):
        written(make(scalar=True), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"norm_placement": "post"}, ("norm_placement", "post")),
        ({"window": 8}, ("llama", "window", "8", "64")),
        ({"qkv_bias": True, "window": 8, "window_layers": (1,)}, ("qwen2", "window", "8")),
        ({"qk_norm": "head", "rope_scaling": SCALING}, ("qwen3", "rope_scaling", "Llama3Scaling", "YarnScaling")),
        ({"rope_scaling": YarnScaling(original_context=16, truncate=False)}, ("llama", "truncate")),
        ({"layers": 4, "no_rope_layers": (1,)}, ("smollm3", "no_rope_layers", "(1,)", "(3,)")),
        (GEMMA2 | {"attention_softcap": None}, ("gemma2", "attention_softcap", "None")),
        (GEMMA2 | {"tied_embeddings": False}, ("gemma2", "tied_embeddings", "False")),
        (GEMMA2 | {"window_layers": (1,)}, ("gemma2", "window_layers", "(1,)", "(0, 2)")),
        (GEMMA2 | {"attention_scale": 0.5}, ("gemma2", "attention_scale", "0.5", "0.25")),
        (GEMMA3 | {"attention_softcap": 3.0}, ("Gemma3ForCausalLM", "attention_softcap", "3.0")),
    ],
    ids=str,
)
def test_what_llama_cpp_does_not_compute_is_refused(make, tmp_path, options, parts):
    with pytest.raises(ValueError, match=naming(*parts)):
        written(make("model", **options), tmp_path / "out")
    assert not (tmp_path / "out").exists()
