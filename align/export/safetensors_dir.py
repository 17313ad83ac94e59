"""Write a directory for transformers and vLLM."""

from dataclasses import replace
from pathlib import Path

import torch

from align.export.export_settings import ExportSettings
from align.export.generation_settings import special_ids, write_generation_config
from align.export.source import Source
from align.io.directory import save_network
from align.io.families import why_no_twin
from align.tokenizer import Tokenizer
from align.tokenizer.plain_template import plain_template


def written_dtype(source: Source, settings: ExportSettings) -> torch.dtype:
    """The dtype of the written weights."""
    return source.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)


def check_hf(source: Source) -> None:
    """Refuse architectures that transformers does not have, before anything is written.

    Raises:
        ValueError: the message names the setting and the nearest architecture.
    """
    if reason := why_no_twin(source.network.config):
        raise ValueError(f"{source.name}: transformers does not support the architecture: {reason}")


def check_range(source: Source, dtype: torch.dtype) -> None:
    """Refuse weights that are not finite, or too large for the dtype.

    Raises:
        ValueError: the message names the tensor, its largest weight and the limit.
    """
    for name, tensor in source.network.state_dict().items():
        largest = tensor.abs().max().item() if tensor.numel() else 0.0
        if not largest < float("inf"):
            raise ValueError(f"{source.name}: {name} contains {largest}: the source's weights are not finite")
        if largest > (limit := torch.finfo(dtype).max):
            raise ValueError(
                f"{source.name}: {name} contains {largest:.4g}, but {str(dtype).removeprefix('torch.')} ends at "
                f"{limit:.4g}: use --dtype bfloat16 or float32"
            )


def write_hf(source: Source, directory: Path, settings: ExportSettings) -> None:
    """Write configuration, weights and tokenizer.

    Raises:
        OSError: the disk is full.
    """
    tokenizer = source.tokenizer
    if (template := tokenizer.spec.chat_template) is not None:
        tokenizer = Tokenizer(replace(tokenizer.spec, chat_template=plain_template(template)))
    tokenizer.save(directory)
    special = special_ids(source)
    save_network(
        source.network,
        directory,
        bos_id=special.bos,
        eos_ids=special.eos,
        pad_id=special.pad,
        dtype=written_dtype(source, settings),
        max_shard_bytes=settings.max_shard_bytes,
    )
    write_generation_config(source, directory)
