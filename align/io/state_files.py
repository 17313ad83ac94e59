"""Write config.json, generation_config.json and the weights of a model directory from tensors by name."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from align.io.families import ONE_LABEL, family_of
from align.io.families.family import Family, FileTensor
from align.io.weight_files import INDEX, WEIGHTS, write_tensors
from align.model.config import GPTConfig


def save_state(
    state: Mapping[str, torch.Tensor],
    directory: str | Path,
    *,
    config: GPTConfig,
    shapes: Mapping[str, tuple[int, ...]],
    bos_id: int | None,
    eos_ids: Sequence[int],
    pad_id: int | None,
    dtype: torch.dtype,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """See ``align.io.directory.save_network``; the tensors may be computed when they are read.

    Args:
        state: tensors by name; each is read once.
        directory: as in ``save_network``.
        config: of the network.
        shapes: of the tensors, by name.
        bos_id: as in ``save_network``.
        eos_ids: as in ``save_network``.
        pad_id: as in ``save_network``.
        dtype: of the written weights.
        max_shard_bytes: as in ``save_network``.

    Raises:
        FileExistsError: the directory has weights already.
        OSError: the disk is full.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if old := sorted(directory.glob("model*.safetensors*")):
        raise FileExistsError(f"{old[0]} exists; write into the directory that replacing_directory yields")
    family = family_of(config)
    special = {"bos_token_id": bos_id, "eos_token_id": _one_or_list(eos_ids), "pad_token_id": pad_id}
    shape = _shape_fields(config, family, scalar="score.weight" in shapes)
    precision = str(dtype).removeprefix("torch.")
    # transformers before version 5 reads torch_dtype.
    _write_json(directory / "config.json", {**shape, **special, "dtype": precision, "torch_dtype": precision})
    _write_json(directory / "generation_config.json", special)
    layout = family.layout(shapes, config)
    sizes = {tensor.name: math.prod(shape_in_file(tensor, shapes)) * dtype.itemsize for tensor in layout}
    shards = list(_shards(layout, sizes, max_shard_bytes))
    file_of: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(directory / file, {tensor.name: in_file(tensor, state).to(dtype) for tensor in shard})
        file_of |= {tensor.name: file for tensor in shard}
    if len(shards) > 1:
        total = {"total_size": sum(sizes.values())}
        _write_json(directory / INDEX, {"metadata": total, "weight_map": file_of})


def _shape_fields(config: GPTConfig, family: Family, *, scalar: bool) -> dict[str, Any]:
    """The fields of config.json that describe the network."""
    return {
        "model_type": family.model_type,
        "architectures": [family.classifier if scalar else family.architecture],
        **family.write(config),
        **(ONE_LABEL if scalar else {}),
    }


def shape_in_file(tensor: FileTensor, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a file's tensor, given the shapes of ours."""
    first, *rest = shapes[tensor.parts[0]]
    joined = (sum(shapes[part][0] for part in tensor.parts), *rest)
    return joined[::-1] if tensor.transposed else joined


def in_file(tensor: FileTensor, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One tensor of a file from ours."""
    if len(tensor.parts) == 1:
        values = state[tensor.parts[0]]
    else:
        grouped = [state[name].unflatten(0, (tensor.groups, -1)) for name in tensor.parts]
        values = torch.stack(grouped, dim=1).flatten(0, 2)
    return values.T if tensor.transposed else values


def _shards(layout: Sequence[FileTensor], sizes: Mapping[str, int], limit: int) -> Iterator[list[FileTensor]]:
    shard: list[FileTensor] = []
    size = 0
    for tensor in layout:
        if shard and size + sizes[tensor.name] > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += sizes[tensor.name]
    yield shard


def _one_or_list(ids: Sequence[int]) -> int | list[int] | None:
    return list(ids) if len(ids) > 1 else next(iter(ids), None)


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
