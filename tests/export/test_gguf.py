"""GGUF files in llama.cpp against the exported network."""

import gguf
import numpy as np
import pytest
import torch
from export_models import GPT2
from naming import naming

from align.export.export_settings import ExportSettings
from align.export.gguf_file import FILE, check_gguf, write_gguf
from align.export.source import open_source
from align.export.verify_llama import LlamaReading
from align.model.rope_scaling import Llama3Scaling

SCALING = Llama3Scaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16)
NETWORKS = {
    "llama": {},
    "llama, grouped, untied": {"kv_heads": 2, "tied_embeddings": False, "norm_eps": 1e-3, "rope_theta": 500000.0},
    "llama, scaled, wide heads": {"rope_scaling": SCALING, "head_width": 16},
    "llama, biases": {"qkv_bias": True, "bias": True, "kv_heads": 1},
    "qwen2": {"qkv_bias": True, "kv_heads": 2},
    "qwen2, untied": {"qkv_bias": True, "tied_embeddings": False},
    "qwen3": {"qk_norm": "head", "kv_heads": 2, "head_width": 16},
    "gpt2": GPT2,
    "gpt2, untied": GPT2 | {"tied_embeddings": False},
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
    """Largest log-prob difference over 40 random ids."""
    config = source.network.config
    reading = LlamaReading(file, context=config.context, vocab_size=config.vocab_size)
    ids = torch.randint(0, config.vocab_size - 5, (40,), generator=torch.Generator().manual_seed(6))
    theirs = reading.logprobs(ids.tolist(), 1)
    reading.close()
    ours = torch.log_softmax(source.network(ids[None])[0, :-1], -1)
    assert theirs.isfinite().float().mean() > 0.99
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_llama_cpp_computes_what_we_compute(make, tmp_path, options):
    """Its GELU is a table of float16 values, hence the wider bound for GPT-2."""
    most = 5e-3 if "feed_forward" in options else 2e-4
    assert difference(*written(make(**options), tmp_path / "out")) < most


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


def test_reward_models_and_strange_networks_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match=naming("llama.cpp", "--format hf")):
        written(make(scalar=True), tmp_path / "out")
    with pytest.raises(ValueError, match=naming("norm_placement", "post")):
        written(make("post", norm_placement="post"), tmp_path / "out")
    with pytest.raises(ValueError, match=naming("rope_scaling", "llama.cpp", "llama", "qwen3")):
        written(make("scaled", qk_norm="head", rope_scaling=SCALING), tmp_path / "out")
