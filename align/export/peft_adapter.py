"""Merge any LoRA adapter that peft wrote into its base, also those that can't be trained further here.

W + scale * B A, with scale = alpha / r, or alpha / sqrt(r) if rank-stabilised (Hu et al. 2021, equation 3;
Kalajdzievski 2023); DoRA then sets each row to its learned length (Liu et al. 2024, equation 5). Ranks may differ by
module, and biases and whole modules may be trained. peft itself would need transformers, which an export does not.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch

from align.io.adapter_directory import StoredAdapter, base_of, checked_base, read_adapter, scale_of
from align.io.directory import is_scalar, load_network, load_scalar, split_parts
from align.io.families import family_of
from align.io.families.family import FileTensor
from align.io.location import read_fields
from align.io.manifest import ADAPTER_WEIGHTS
from align.io.state_files import shape_in_file
from align.io.weight_files import StoredTensor, read_tensor
from align.model.gpt import GPT, ScalarGPT
from align.model.meta import built_without_memory

_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")

_EMBEDDING = re.compile(r"(.+)\.lora_embedding_([AB])(?:\.default)?")

_MAGNITUDES = re.compile(r"(.+)\.lora_magnitude_vector(?:\.default(?:\.weight)?)?")


def merged(adapter: Path, base: str | None) -> tuple[GPT | ScalarGPT, Path]:
    """Load an adapter's base and merge the adapter into it.

    Args:
        adapter: a directory in peft's format.
        base: directory or Hub id of its base; None: the one that its configuration names.

    Returns:
        The network, float32, and the base's directory.

    Raises:
        FileNotFoundError: the adapter's weights or its base are missing.
        ValueError: the adapter is not LoRA, is damaged, or does not fit its base, or was trained on other weights.
    """
    lora = read_adapter(adapter)
    directory, stored, weights = base_of(adapter, base), lora.tensors, adapter / ADAPTER_WEIGHTS
    checked_base(adapter, directory)
    scalar = is_scalar(read_fields(directory)) or "score.weight" in stored
    network = load_scalar(directory) if scalar else load_network(directory)
    if isinstance(network, GPT) and network.config.tied_embeddings and _unties(stored, network):
        network = untied(network)
    state = network.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    parts_of = {tensor.name: tensor for tensor in family_of(network.config).layout(state, network.config)}
    with torch.no_grad():
        for name, tensor in stored.items():
            if not any(kind.fullmatch(name) for kind in (_LORA, _EMBEDDING, _MAGNITUDES)):
                _replace(state, parts_of, name, tensor)
        for name, delta in _deltas(lora):
            target = f"{name}.weight"
            if target not in parts_of:
                raise ValueError(f"{weights}: {name} is not part of {directory}")
            rows = parts_of[target]._replace(transposed=False)
            if (right := shape_in_file(rows, shapes)) != tuple(delta.shape):
                raise ValueError(
                    f"{weights}: {name} is {list(delta.shape)}, but {directory} has {list(right)}: another base?"
                )
            for ours, part in split_parts(rows, delta):
                state[ours] += part
        for name, tensor in stored.items():
            if match := _MAGNITUDES.fullmatch(name):
                _set_row_norms(state, parts_of[f"{match[1]}.weight"], tensor)
    return network, directory


def _unties(stored: dict[str, StoredTensor], network: GPT) -> bool:
    """Whether an adapter changes the embedding or the output matrix; of a tied base, peft changes only that one."""
    layout = family_of(network.config).layout(network.state_dict(), network.config)
    (embedding,) = (tensor.name for tensor in layout if tensor.parts == ("model.embed_tokens.weight",))
    changed = (embedding.removesuffix("weight"), "lm_head.")
    return any(name.startswith(changed) for name in stored)


def untied(network: GPT) -> GPT:
    """A tied network with a copy of the embedding as its output matrix; it shares its other weights with the first."""
    with built_without_memory():
        found = GPT(replace(network.config, tied_embeddings=False))
    state = network.state_dict()
    head = {"lm_head.weight": state["model.embed_tokens.weight"].clone()}
    found.load_state_dict(state | head, assign=True)
    return found


def _deltas(adapter: StoredAdapter) -> list[tuple[str, torch.Tensor]]:
    """The update of each matrix, ``[out, in]`` float32."""
    found = []
    for name, tensor in adapter.tensors.items():
        match = _LORA.fullmatch(name) or _EMBEDDING.fullmatch(name)
        if not match or match[2] != "A":
            continue
        embedding = bool(_EMBEDDING.fullmatch(name))
        pair = name.replace("_A", "_B") if embedding else name.replace(".lora_A", ".lora_B")
        if pair not in adapter.tensors:
            raise ValueError(f"{tensor.path}: {name} has no {pair}")
        a, b = read_tensor(tensor).float(), read_tensor(adapter.tensors[pair]).float()
        product = (b @ a) * scale_of(match[1], adapter).scale
        found.append((match[1], product.T if embedding else product))
    return found


def _set_row_norms(state: dict[str, torch.Tensor], target: FileTensor, stored: StoredTensor) -> None:
    """Scale the rows of a file's matrix, ``[out, in]`` in ours, to the norms that DoRA learned."""
    lengths = read_tensor(stored).float().flatten()
    rows = sum(len(state[ours]) for ours in target.parts)
    if len(lengths) != rows:
        raise ValueError(f"{stored.path}: {stored.name} has {len(lengths)} values; the base has {rows} rows")
    for ours, part in split_parts(target._replace(transposed=False), lengths):
        state[ours] *= (part / torch.linalg.vector_norm(state[ours], dim=1))[:, None]


def _replace(state: dict[str, torch.Tensor], parts_of: dict[str, FileTensor], name: str, tensor: StoredTensor) -> None:
    """Replace a tensor that was trained whole (modules_to_save, biases)."""
    plain = name.replace(".base_layer.", ".")
    if plain not in parts_of:
        raise ValueError(f"{tensor.path}: {tensor.name} is neither a LoRA matrix nor a tensor of the base")
    target = parts_of[plain]
    shapes = {ours: tuple(state[ours].shape) for ours in target.parts}
    if (right := shape_in_file(target, shapes)) != tensor.shape:
        raise ValueError(f"{tensor.path}: {tensor.name} is {list(tensor.shape)}; the base has {list(right)}")
    for ours, part in split_parts(target, read_tensor(tensor).float()):
        state[ours].copy_(part)
