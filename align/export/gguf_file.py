"""Write a GGUF file for llama.cpp; ``align.io.gguf`` has the names and layouts of its architectures."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.export.export_settings import ExportSettings
from align.export.extra import need
from align.export.gguf_tokenizer import add_tokenizer, pre_tokenizer_name
from align.export.lineage import lineage, title
from align.export.source import Source
from align.io.gguf.architectures import OURS, architecture_of
from align.io.gguf.rope import ROPE_DIVISORS, rope_divisors
from align.io.provenance import origin_of
from align.model.rope_scaling import Llama3Scaling

FILE = "model.gguf"
VERSION = 3
"""Increased whenever the same source gives different bytes, so that cached files are rewritten"""
_BLOCK = 32
"""Weights per scale, in all quantized types"""
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9}
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
            f"{source.name}: a reward model, whose head llama.cpp does not support: export it with --format hf"
        )
    try:
        architecture_of(source.network.config)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
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
    config = source.network.config
    architecture = architecture_of(config)
    writer = gguf.GGUFWriter(directory / FILE, architecture.name)
    kind = _type_name(source, settings)
    for key, value in architecture.write(config).items():
        _ADD[type(value)](writer, f"{architecture.name}.{key}", value)
    if own := architecture.own_settings(config):
        writer.add_string(OURS, json.dumps(own))
    stages = lineage(source.manifest, source.directory)
    writer.add_name(title(stages))
    if hub_id := origin_of(stages[-1].directory).hub_id:
        owner, _, name = hub_id.partition("/")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, name)
        writer.add_base_model_organization(0, owner)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if settings.licence:
        writer.add_license(settings.licence)
    add_tokenizer(writer, source.tokenizer, config.vocab_size)
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
    kind, config, state = _type_name(source, settings), source.network.config, source.network.state_dict()
    for tensor in architecture_of(config).layout(state, config):
        values = tensor.join(state)
        code = getattr(gguf.GGMLQuantizationType, _tensor_type(tensor.name, values, kind))
        stored = gguf.quants.quantize(np.ascontiguousarray(values.float().numpy()), code)
        rounded = torch.from_numpy(gguf.quants.dequantize(stored, code)).float()
        yield from tensor.split(rounded, [len(state[part]) for part in tensor.parts]).items()


def _type_name(source: Source, settings: ExportSettings) -> str:
    if settings.quantize != "none":
        return settings.quantize.upper()
    name = str(source.dtype).removeprefix("torch.") if settings.dtype == "auto" else settings.dtype
    return _TYPES.get(name, "F32")


def _tensor_type(name: str, tensor: torch.Tensor, kind: str) -> str:
    if tensor.dim() == 1 or name == "position_embd.weight":
        return "F32"
    return "Q8_0" if name in _SENSITIVE and kind.startswith(("Q4", "Q5")) else kind


_ADD: dict[type, Callable[[Any, str, Any], None]] = {
    bool: lambda writer, key, value: writer.add_bool(key, value),
    int: lambda writer, key, value: writer.add_uint32(key, value),
    float: lambda writer, key, value: writer.add_float32(key, value),
    str: lambda writer, key, value: writer.add_string(key, value),
}
"""How a writer adds a value of each type"""


def _tensors(source: Source) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor under its llama.cpp name and in its layout."""
    config, state = source.network.config, source.network.state_dict()
    for tensor in architecture_of(config).layout(state, config):
        yield tensor.name, tensor.join(state)
    if isinstance(config.rope_scaling, Llama3Scaling):
        yield ROPE_DIVISORS, torch.tensor(rope_divisors(config, config.rope_scaling), dtype=torch.float32)
