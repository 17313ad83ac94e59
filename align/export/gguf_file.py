"""Write a GGUF file for llama.cpp, under its tensor names.

Legend: D width, H heads, W head width.
"""

import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.export.export_settings import ExportSettings
from align.export.extra import need
from align.export.gguf_tokenizer import add_tokenizer, pre_tokenizer_name
from align.export.source import Source
from align.io.families import family_of, why_no_twin
from align.model.config import GPTConfig
from align.model.rope_scaling import Llama3Scaling

FILE = "model.gguf"
VERSION = 1
"""Increased whenever the same source gives different bytes, so that cached files are rewritten"""
_BLOCK = 32
"""Weights per scale, in all quantized types"""
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
# In 8 bits where the rest has 4 or 5: errors here affect every token's logits.
_SENSITIVE = ("token_embd.weight", "output.weight")


def check_gguf(source: Source, settings: ExportSettings) -> None:
    """Refuse what a GGUF file can't express, before anything is written.

    Raises:
        ModuleNotFoundError: gguf is not installed.
        ValueError: the architecture, head, tokenizer or a row width is not supported.
    """
    need("gguf", "--format gguf")
    if source.scalar:
        raise ValueError(
            f"{source.name}: a reward model, whose head llama.cpp does not support in the architectures llama, qwen2, "
            "qwen3 and gpt2: export it with --format hf"
        )
    if reason := why_no_twin(source.network.config):
        raise ValueError(f"{source.name}: llama.cpp does not support the architecture: {reason}")
    config = source.network.config
    family = family_of(config).model_type
    if family not in ("llama", "qwen2", "qwen3", "gpt2") or config.window is not None:
        raise ValueError(f"{source.name}: is a {family} with window {config.window}, which is not written as GGUF yet")
    if config.rope_scaling is not None and not (family == "llama" and isinstance(config.rope_scaling, Llama3Scaling)):
        raise ValueError(f"{source.name}: rope_scaling is set, which llama.cpp supports in llama but not in {family}")
    pre_tokenizer_name(source.tokenizer)
    if settings.quantize == "none":
        return
    for name, tensor in _tensors(source):
        if tensor.dim() == 2 and name != "position_embd.weight" and tensor.shape[1] % _BLOCK:
            raise ValueError(
                f"{source.name}: {name} has row width {tensor.shape[1]}, and {settings.quantize} needs a "
                f"multiple of {_BLOCK}: use --dtype float32, float16 or bfloat16 without --quantize"
            )


def write_gguf(source: Source, directory: Path, settings: ExportSettings) -> None:
    """Write ``model.gguf``.

    Args:
        source: a language model.
        directory: to write into.
        settings: ``dtype`` and ``quantize``; vectors (norms, biases) and learned positions stay in float32.

    Raises:
        ValueError: a weight is too large for float16.
        OSError: the disk is full.
    """
    gguf = need("gguf", "--format gguf")
    # llama.cpp has the same names for the four architectures that passed the check.
    family = family_of(source.network.config).model_type
    writer = gguf.GGUFWriter(directory / FILE, family)
    kind = _type_name(source, settings)
    _add_shape(writer, source.network.config)
    writer.add_name(f"{source.manifest['stage']} ({Path(source.name).name})")
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if settings.licence:
        writer.add_license(settings.licence)
    add_tokenizer(writer, source.tokenizer, source.network.config.vocab_size)
    for name, tensor in _tensors(source):
        code = _tensor_type(name, tensor, kind)
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
        # numpy reports only how many elements it could not write, without an error code.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory / FILE)) from error


def rounded_by_gguf(source: Source, settings: ExportSettings) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by its name in the network, float32, as llama.cpp reads it from the file."""
    gguf = need("gguf", "--format gguf")
    kind = _type_name(source, settings)
    for name, tensor in source.network.state_dict().items():
        code = getattr(gguf.GGMLQuantizationType, _tensor_type(_named(name), tensor, kind))
        stored = gguf.quants.quantize(np.ascontiguousarray(tensor.float().numpy()), code)
        yield name, torch.from_numpy(gguf.quants.dequantize(stored, code)).float()


def _type_name(source: Source, settings: ExportSettings) -> str:
    if settings.quantize != "none":
        return settings.quantize.upper()
    name = str(source.dtype).removeprefix("torch.") if settings.dtype == "auto" else settings.dtype
    return _TYPES.get(name, "F32")


def _tensor_type(name: str, tensor: torch.Tensor, kind: str) -> str:
    if tensor.dim() == 1 or name == "position_embd.weight":
        return "F32"
    return "Q8_0" if name in _SENSITIVE and kind.startswith(("Q4", "Q5")) else kind


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
    """Each tensor under its llama.cpp name and in its layout."""
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
    if isinstance(config.rope_scaling, Llama3Scaling):
        found.append(("rope_freqs.weight", rope_divisors(config, config.rope_scaling)))
    return found


def _named(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of query or key matrices for llama.cpp's RoPE in architecture llama.

    There adjacent rows are rotated as pairs. Here, in transformers, and in llama.cpp's qwen2 and qwen3, the pairs are
    rows of the two halves of a head.

    Args:
        tensor: ``[H W, D]``, or a bias ``[H W]``.
        heads: H.

    Returns:
        The same shape.
    """
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def rope_divisors(config: GPTConfig, scaling: Llama3Scaling) -> torch.Tensor:
    """Divisors of the RoPE frequencies under Llama-3 scaling; ``[W / 2]`` float32."""
    divisors = []
    for pair in range(config.resolved_head_width // 2):
        wavelength = 2 * math.pi * config.rope_theta ** (2 * pair / config.resolved_head_width)
        turns = scaling.original_context / wavelength
        smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        smooth = min(1.0, max(0.0, smooth))
        divisors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return torch.tensor(divisors, dtype=torch.float32)
