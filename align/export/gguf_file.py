"""One GGUF file, as llama.cpp reads it: our networks under its names.

Legend: D width, H heads, W head width.
"""

import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.export.gguf_tokenizer import add_tokenizer, cut_name
from align.export.missing import need
from align.export.settings import ExportSettings
from align.export.source import Source
from align.io.families import family_of, why_no_twin
from align.model.config import GPTConfig, RopeScaling

FILE = "model.gguf"
VERSION = 1
"""Raised whenever the same source gives other bytes, so that cached files are written anew"""
_BLOCK = 32
"""Weights of a row that share a scale, in all types below"""
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9}
_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.embed_positions": "position_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Held in 8 bits where the rest has 4: errors here reach every token's logits.
_DELICATE = ("token_embd.weight", "output.weight")


def check_gguf(source: Source, settings: ExportSettings) -> None:
    """Refuse what a GGUF file cannot hold, before anything is written.

    Raises:
        ModuleNotFoundError: gguf is not installed.
        ValueError: the architecture, a head, the tokenizer or a row's width does not fit; the line says which.
    """
    need("gguf", "--format gguf")
    if source.scalar:
        raise ValueError(
            f"{source.name}: a reward model, for whose head llama.cpp has no place in the architectures llama, qwen2, "
            "qwen3 and gpt2: export it with --format hf"
        )
    if reason := why_no_twin(source.network.config):
        raise ValueError(f"{source.name}: llama.cpp has no architecture that computes it: {reason}")
    config = source.network.config
    family = family_of(config).model_type
    if config.rope_scaling is not None and family != "llama":
        raise ValueError(f"{source.name}: rope_scaling is set, which llama.cpp reads in llama alone, not in {family}")
    cut_name(source.tokenizer)
    if settings.quantize == "none":
        return
    for name, tensor in _tensors(source):
        if tensor.dim() == 2 and name != "position_embd.weight" and tensor.shape[1] % _BLOCK:
            raise ValueError(
                f"{source.name}: {name} has rows of {tensor.shape[1]} weights, and {settings.quantize} needs a "
                f"multiple of {_BLOCK}: use --dtype float32, float16 or bfloat16 without --quantize"
            )


def write_gguf(source: Source, directory: Path, settings: ExportSettings) -> None:
    """Write ``model.gguf``.

    Args:
        source: a language model.
        directory: where to.
        settings: ``dtype`` and ``quantize``; vectors (norms, biases) and learned positions stay in float32.

    Raises:
        ValueError: a weight is too large for float16.
        OSError: the disk is full.
    """
    gguf = need("gguf", "--format gguf")
    family = family_of(source.network.config).model_type  # the four that are left have the same names there
    writer = gguf.GGUFWriter(directory / FILE, family)
    kind = _kind(source, settings)
    _add_shape(writer, source.network.config)
    writer.add_name(f"{source.manifest['stage']} ({Path(source.name).name})")
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if settings.licence:
        writer.add_license(settings.licence)
    add_tokenizer(writer, source.tokenizer, source.network.config.vocab_size)
    for name, tensor in _tensors(source):
        code = _tensor_kind(name, tensor, kind)
        values = np.ascontiguousarray(tensor.detach().float().numpy())
        stored = getattr(gguf.GGMLQuantizationType, code)
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:
        if error.errno is not None:
            raise
        # numpy says only how many numbers it could not write.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory / FILE)) from error


def _kind(source: Source, settings: ExportSettings) -> str:
    if settings.quantize != "none":
        return settings.quantize.upper()
    name = str(source.dtype).removeprefix("torch.") if settings.dtype == "auto" else settings.dtype
    return _TYPES.get(name, "F32")


def _tensor_kind(name: str, tensor: torch.Tensor, kind: str) -> str:
    if tensor.dim() == 1 or name == "position_embd.weight":
        return "F32"
    return "Q8_0" if name in _DELICATE and kind.startswith(("Q4", "Q5")) else kind


def _add_shape(writer: Any, config: GPTConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.resolved_ff_width)
    writer.add_head_count(config.heads)
    if config.positions == "learned":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_head_count_kv(config.resolved_kv_heads)
    writer.add_key_length(config.resolved_head_width)
    writer.add_value_length(config.resolved_head_width)
    writer.add_rope_dimension_count(config.resolved_head_width)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _tensors(source: Source) -> list[tuple[str, torch.Tensor]]:
    """Name and values of each tensor, as llama.cpp wants them."""
    config = source.network.config
    family = family_of(config).model_type
    found = []
    state = source.network.state_dict()
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tied_embeddings:
            continue
        if family == "gpt2" and ".self_attn." in name and "o_proj" not in name:
            if ".q_proj." in name:
                joined = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                found.append((_named(name).replace("attn_q", "attn_qkv"), torch.cat(joined)))
            continue
        if family == "llama" and ".q_proj." in name:
            tensor = interleaved(tensor, config.heads)
        elif family == "llama" and ".k_proj." in name:
            tensor = interleaved(tensor, config.resolved_kv_heads)
        found.append((_named(name), tensor))
    if config.rope_scaling is not None:
        found.append(("rope_freqs.weight", rope_divisors(config, config.rope_scaling)))
    return found


def _named(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys in the order of llama.cpp's rotation of architecture llama.

    There neighbours make a pair, here (as in transformers) the halves of a head do. Its qwen2 and qwen3 rotate halves.

    Args:
        tensor: ``[H W, D]``, or a bias ``[H W]``.
        heads: H.

    Returns:
        The same shape.
    """
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def rope_divisors(config: GPTConfig, scaling: RopeScaling) -> torch.Tensor:
    """By what Llama-3 scaling divides each rotary frequency; ``[W / 2]`` float32."""
    divisors = []
    for pair in range(config.resolved_head_width // 2):
        wavelength = 2 * math.pi * config.rope_theta ** (2 * pair / config.resolved_head_width)
        turns = scaling.original_context / wavelength
        smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        smooth = min(1.0, max(0.0, smooth))
        divisors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return torch.tensor(divisors, dtype=torch.float32)
