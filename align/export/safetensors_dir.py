"""A directory as transformers and vLLM read it."""

from pathlib import Path

import torch

from align.export.settings import ExportSettings
from align.export.source import Source
from align.io.directory import save_network
from align.io.families import why_no_twin


def written_type(source: Source, settings: ExportSettings) -> torch.dtype:
    """The type that weights are written in."""
    return source.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)


def check_hf(source: Source) -> None:
    """Refuse what transformers has no class for, before anything is written.

    Raises:
        ValueError: the line names the setting and the nearest architecture.
    """
    if reason := why_no_twin(source.network.config):
        raise ValueError(f"{source.name}: transformers has no architecture that computes it: {reason}")


def check_range(source: Source, dtype: torch.dtype) -> None:
    """Refuse weights that are not finite, or too large for the type.

    Raises:
        ValueError: the line names the tensor, its largest weight and the type's.
    """
    for name, tensor in source.network.state_dict().items():
        largest = tensor.abs().max().item() if tensor.numel() else 0.0
        if not largest < float("inf"):
            raise ValueError(
                f"{source.name}: {name} holds {largest}: the source is damaged, its weights are not finite"
            )
        if largest > (limit := torch.finfo(dtype).max):
            raise ValueError(
                f"{source.name}: {name} holds {largest:.4g}, and {str(dtype).removeprefix('torch.')} ends at "
                f"{limit:.4g}: use --dtype bfloat16 or float32"
            )


def write_hf(source: Source, directory: Path, settings: ExportSettings) -> None:
    """Write configuration, weights and tokenizer.

    Raises:
        OSError: the disk is full.
    """
    tokenizer = source.tokenizer
    tokenizer.save(directory)
    save_network(
        source.network,
        directory,
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        dtype=written_type(source, settings),
        max_shard_bytes=settings.max_shard_bytes,
    )
