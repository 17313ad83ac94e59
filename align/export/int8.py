"""8-bit matrices with one scale per row, in torchao's format, which transformers reads.

Weight-only: activations are not quantized, and each matrix is dequantized when used.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.export.export_settings import ExportSettings
from align.export.extra import need
from align.export.safetensors_dir import write_hf, written_dtype
from align.export.source import Source
from align.io.directory import split_parts
from align.io.families import family_of
from align.io.families.family import FileTensor
from align.io.state_files import in_file
from align.io.weight_files import WEIGHTS, write_tensors

_KEPT = ("lm_head", "embed_out", "score")
"""Modules that are not quantized: errors there affect every token's logits, or the score"""


def check_int8(source: Source, settings: ExportSettings) -> None:
    """Refuse what torchao can't quantize, before anything is written.

    Raises:
        ModuleNotFoundError: torchao is not installed.
        ValueError: GPT-2, or weights that would need several files.
    """
    need("torchao", "--quantize int8")
    if family_of(source.network.config).model_type == "gpt2":
        raise ValueError(
            f"{source.name}: GPT2LMHeadModel has Conv1D layers, which torchao does not quantize; use --format gguf "
            "--quantize q8_0"
        )
    size = sum(tensor.numel() for tensor in source.network.state_dict().values())
    if size > settings.max_shard_bytes:
        raise ValueError(
            f"{source.name}: int8 weights go to one file, here of about {size:,} bytes, but max_shard_size is "
            f"{settings.max_shard_bytes:,}: raise it"
        )


def write_int8(source: Source, directory: Path, settings: ExportSettings) -> None:
    """Write a transformers directory with a torchao quantization_config.

    Raises:
        OSError: the disk is full.
    """
    need("torchao", "--quantize int8")
    from torchao.core.config import config_to_dict
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig

    write_hf(source, directory, settings)
    named = {tensor.name: values for tensor, values in _quantized(source, written_dtype(source, settings))}
    tensors, notes = flatten_tensor_state_dict(named)
    write_tensors(directory / WEIGHTS, tensors, notes)
    path = directory / "config.json"
    fields: dict[str, Any] = json.loads(path.read_bytes())
    fields["quantization_config"] = {
        "quant_method": "torchao",
        "quant_type": {"default": config_to_dict(Int8WeightOnlyConfig())},
        "modules_to_not_convert": list(_KEPT),
    }
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def rounded_by_int8(source: Source, settings: ExportSettings) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by its name in the network, float32, as transformers dequantizes it."""
    for tensor, stored in _quantized(source, written_dtype(source, settings)):
        values: Any = stored
        plain = (values.dequantize() if type(values) is not torch.Tensor else values).float()
        yield from split_parts(tensor, plain)


def _quantized(source: Source, dtype: torch.dtype) -> Iterator[tuple[FileTensor, torch.Tensor]]:
    """Every tensor of the file, with the matrices of the blocks in 8 bits; the source's network is not changed."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    config, state = source.network.config, dict(source.network.state_dict())
    if config.tied_embeddings:
        state.pop("lm_head.weight", None)
    for tensor in family_of(config).layout(state, config):
        values = in_file(tensor, state).detach().to(dtype, copy=True)
        if values.dim() == 2 and ".layers." in tensor.name:
            layer = nn.Linear(1, 1, bias=False, device="meta")
            layer.weight = nn.Parameter(values, requires_grad=False)
            quantize_(layer, Int8WeightOnlyConfig())
            values = layer.weight
        yield tensor, values
