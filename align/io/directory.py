"""The model directory: what stages hand each other, in the layout of Hugging Face.

A directory of ours opens in transformers where the network has a twin there, and a directory, a local checkpoint or a
Hub id of Llama, Qwen2, Qwen3 or GPT-2 opens here. Names and configurations of each are in ``align.io.families``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from align.adapters.merging import MergedState, has_lora
from align.io.atomic import replacing_directory
from align.io.families import ONE_LABEL, config_from, family_in, family_of
from align.io.families.base import Family, Fields, FileTensor
from align.io.location import locate, read_config, read_fields
from align.io.manifest import weights_fingerprint
from align.io.weight_files import (
    INDEX,
    WEIGHTS,
    PlannedTensor,
    StoredTensor,
    read_tensor,
    stored_weights,
    write_tensors,
)
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.model.meta import built_without_memory

if TYPE_CHECKING:
    from align.model.gpt import ScalarGPT

__all__ = ["load_network", "locate", "read_config", "replacing_directory", "save_network", "weights_fingerprint"]


def load_network(source: str | Path, *, dtype: torch.dtype = torch.float32) -> GPT:
    """The network of a model directory, on the CPU and in training mode.

    The network is built without memory and gets one tensor of the file after the other.

    Args:
        source: a directory of ours or of Hugging Face, sharded or not, or a Hub id; see ``locate``.
        dtype: what the weights are converted to.

    Raises:
        FileNotFoundError: the directory or a weight file is missing.
        ValueError: the configuration is not supported, a file is damaged, or a tensor is missing, surplus or of
            another shape, or it is a reward model; the line names file and tensor.
    """
    directory = locate(source)
    fields = read_fields(directory)
    config = config_from(fields)
    if is_scalar(fields):
        raise ValueError(
            f"{directory}: a reward model ({family_in(fields).classifier}), which gives a score and no text; "
            "a language model is needed here"
        )
    with built_without_memory():
        network = GPT(config)
    fill(network, directory, fields, dtype=dtype)
    return network


def is_scalar(fields: Fields) -> bool:
    """Whether a config.json describes a network with a score for a head, not a language model."""
    return family_in(fields).classifier in fields.get("architectures", [])


def fill(
    network: nn.Module,
    directory: Path,
    fields: Fields,
    *,
    dtype: torch.dtype,
    ignored: Sequence[str] = (),
    fresh: Sequence[str] = (),
) -> None:
    """Give a network without memory the weights of a directory, one tensor after the other.

    Args:
        network: a GPT or a ScalarGPT of the configuration in ``fields``.
        directory: where the weight files are.
        fields: its config.json.
        dtype: what the weights are converted to.
        ignored: tensors of the file that the network has no use for.
        fresh: tensors of ours that the file does not have; they are left without memory.

    Raises:
        FileNotFoundError: a weight file is missing.
        ValueError: a file is damaged, or a tensor is missing, surplus or of another shape.
    """
    config, family = config_from(fields), family_in(fields)
    stored = _by_canonical_name(stored_weights(directory), family)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name not in fresh}
    layout = family.layout(shapes)
    for name in ignored:
        stored.pop(name, None)
    _drop_tied_copy(stored, config, layout)
    _check_complete(stored, layout, shapes, directory)
    ours = {
        name: part.to(dtype) for tensor in layout for name, part in _parts(tensor, read_tensor(stored[tensor.name]))
    }
    network.load_state_dict(ours, assign=True, strict=not fresh)


def save_network(
    network: "GPT | ScalarGPT",
    directory: str | Path,
    *,
    bos_id: int | None,
    eos_ids: Sequence[int],
    pad_id: int | None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config.json, generation_config.json and the weights, in the family that the network's shape has.

    Not atomic by itself: write into what ``replacing_directory`` yields.

    Args:
        network: what to write; a tied output matrix is written once, as the embedding. A ScalarGPT is written as a
            sequence classifier with one label, whose readers find the last real token by ``pad_id``. Of one with
            adapters the merged weights are written, and it stays as it is.
        directory: made where it does not exist; must hold no weights.
        bos_id: what starts a text, or None.
        eos_ids: what ends a response.
        pad_id: what fills rows, or None.
        dtype: what weights are converted to, one at a time; None: as they are.
        max_shard_bytes: weights above this go to several files with an index. A tensor is never split.

    Raises:
        FileExistsError: the directory holds weights already.
        OSError: the disk is full.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if old := sorted(directory.glob("model*.safetensors*")):
        raise FileExistsError(f"{old[0]} exists; write into what replacing_directory yields, to replace it whole")
    family = family_of(network.config)
    state: Mapping[str, torch.Tensor] = MergedState(network) if has_lora(network) else network.state_dict()
    written = dtype or state["model.embed_tokens.weight"].dtype
    special = {"bos_token_id": bos_id, "eos_token_id": _one_or_list(eos_ids), "pad_token_id": pad_id}
    shape = _shape_fields(network.config, family, scalar="score.weight" in state)
    precision = str(written).removeprefix("torch.")
    # The second name is for readers older than transformers 5.
    _write_json(directory / "config.json", {**shape, **special, "dtype": precision, "torch_dtype": precision})
    _write_json(directory / "generation_config.json", special)
    layout = {tensor.name: tensor for tensor in family.layout(state)}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    plan = [PlannedTensor(tensor.name, _shape(tensor, shapes), written) for tensor in layout.values()]
    shards = list(_shards(plan, max_shard_bytes))
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(directory / file, shard, lambda name: _join(layout[name], state))
        places |= {tensor.name: file for tensor in shard}
    if len(shards) > 1:
        size = sum(tensor.num_bytes for tensor in plan)
        _write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def _shape_fields(config: GPTConfig, family: Family, *, scalar: bool) -> dict[str, Any]:
    """The fields of config.json that tell the network's shape."""
    return {
        "model_type": family.model_type,
        "architectures": [family.classifier if scalar else family.architecture],
        **family.write(config),
        **(ONE_LABEL if scalar else {}),
    }


def _by_canonical_name(stored: Mapping[str, StoredTensor], family: Family) -> dict[str, StoredTensor]:
    return {known: tensor for name, tensor in stored.items() if (known := family.canonical(name)) is not None}


def _drop_tied_copy(stored: dict[str, StoredTensor], config: GPTConfig, layout: Sequence[FileTensor]) -> None:
    """Forget a tied output matrix that is stored too, if it is the embedding's copy."""
    if not config.tied_embeddings or "lm_head.weight" not in stored:
        return
    embedding = stored.get(next(t.name for t in layout if t.parts == ("model.embed_tokens.weight",)))
    head = stored.pop("lm_head.weight")
    if embedding is None:
        return
    if head.shape != embedding.shape or not torch.equal(read_tensor(head), read_tensor(embedding)):
        raise ValueError(
            f"{head.path}: lm_head.weight differs from {embedding.name}, but config.json ties them; "
            "set tie_word_embeddings to false to use both"
        )


def _check_complete(
    stored: Mapping[str, StoredTensor],
    layout: Sequence[FileTensor],
    shapes: Mapping[str, tuple[int, ...]],
    directory: Path,
) -> None:
    expected = {tensor.name: tensor for tensor in layout}
    if missing := [name for name in expected if name not in stored]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(f"{directory}: the weights lack {missing[0]}{more}, which config.json calls for")
    for name, tensor in stored.items():
        if name not in expected:
            raise ValueError(f"{tensor.path}: {tensor.name} is no part of the network that config.json describes")
        if tensor.shape != (right := _shape(expected[name], shapes)):
            raise ValueError(f"{tensor.path}: {tensor.name} is {list(tensor.shape)}; config.json says {list(right)}")


def _shape(tensor: FileTensor, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape in the file of a tensor made of ours."""
    first, *rest = shapes[tensor.parts[0]]
    joined = (sum(shapes[part][0] for part in tensor.parts), *rest)
    return joined[::-1] if tensor.transposed else joined


def _parts(tensor: FileTensor, values: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors out of one of a file, each in memory of its own."""
    if tensor.transposed:
        values = values.T
    if len(tensor.parts) == 1:
        yield tensor.parts[0], values.contiguous()
        return
    for name, part in zip(tensor.parts, values.chunk(len(tensor.parts)), strict=True):
        yield name, part.clone(memory_format=torch.contiguous_format)


def _join(tensor: FileTensor, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One tensor of a file out of ours."""
    values = state[tensor.parts[0]] if len(tensor.parts) == 1 else torch.cat([state[name] for name in tensor.parts])
    return values.T if tensor.transposed else values


def _shards(plan: Sequence[PlannedTensor], limit: int) -> Iterator[list[PlannedTensor]]:
    shard: list[PlannedTensor] = []
    size = 0
    for tensor in plan:
        if shard and size + tensor.num_bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.num_bytes
    yield shard


def _one_or_list(ids: Sequence[int]) -> int | list[int] | None:
    return list(ids) if len(ids) > 1 else next(iter(ids), None)


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_scalar(source: str | Path, *, dtype: torch.dtype = torch.float32, head_seed: int = 0) -> ScalarGPT:
    """The reward model of a directory, or a language model's trunk under a fresh head; on the CPU, in training mode.

    Args:
        source: a directory of ours or of Hugging Face, or a Hub id; see ``locate``.
        dtype: what the weights are converted to.
        head_seed: decides the fresh head; not read where the directory has a head.

    Raises:
        FileNotFoundError: the directory or a weight file is missing.
        ValueError: the configuration is not supported (another number of labels than 1, for one), a file is damaged,
            or a tensor is missing, surplus or of another shape; the line names file and tensor.
    """
    directory = locate(source)
    fields = read_fields(directory)
    with built_without_memory():
        network = ScalarGPT(config_from(fields))
    if is_scalar(fields):
        fill(network, directory, fields, dtype=dtype)
        return network
    fill(network, directory, fields, dtype=dtype, ignored=("lm_head.weight",), fresh=("score.weight",))
    # The head is drawn in float32, so that a seed gives the same head whatever the dtype.
    network.score = nn.Linear(network.config.width, 1, bias=False)
    network.initialise_head(head_seed)
    network.score.to(dtype)
    return network
