"""Adapters over the matrices of a family's files, as peft has them, and over ours.

Some families store queries, keys and values as one matrix. Adapters of rank r on its n parts are one adapter of rank
n r on the whole: A is the parts' A, stacked, and B is block diagonal, with its rows in the order of the stored matrix.
A part without an adapter has zeros. DoRA's norms belong to rows: they are those of the parts, and the norms of the
weights for a part without an adapter.

Legend: in, out: dimensions of a matrix; r rank; n parts of a file's matrix.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

from align.adapters.lora import LAYERS, NAME, adapter_parameters, adapters
from align.adapters.merging import base_parameters
from align.io.directory import split_parts
from align.io.families import family_of
from align.io.families.family import FileTensor
from align.io.state_files import in_file
from align.model.config import GPTConfig
from align.model.four_bit import dense
from align.model.gpt import GPT, ScalarGPT
from align.model.meta import built_without_memory

A, B, NORMS = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
"""An adapter's tensors on one matrix: ``[r, in]``, ``[out, r]`` and, with DoRA, ``[out]``"""


class PeftTensors(NamedTuple):
    """An adapter as peft has it over the network of its files.

    Attributes:
        tensors: by name, without peft's prefix.
        targets: for ``target_modules``.
        parts: for each target of several parts, how many; its rank is so many times the adapter's.
        transposed: for ``fan_in_fan_out``: whether the files have ``[in, out]`` matrices.
    """

    tensors: dict[str, torch.Tensor]
    targets: list[str]
    parts: dict[str, int]
    transposed: bool


def matrices(config: GPTConfig) -> dict[str, FileTensor]:
    """The matrices of the blocks in the files of a network's family, by module: ``transformer.h.0.attn.c_attn``."""
    with built_without_memory():
        network = GPT(config)
    names = [f"{module}.weight" for module, _ in network.named_modules() if module.rpartition(".")[2] in LAYERS]
    return {module_of(tensor.name): tensor for tensor in family_of(config).layout(names, config)}


def to_peft(network: GPT | ScalarGPT, name: str = NAME) -> PeftTensors:
    """An adapter's tensors over the matrices of the files of a network's family."""
    stored = adapter_parameters(network, name)
    targets = _targets(matrices(network.config))
    found = PeftTensors({}, [], {}, transposed=False)
    for module, matrix in matrices(network.config).items():
        if not any(f"{module_of(part)}.{A}" in stored for part in matrix.parts):
            continue
        parts = [_part(network, stored, part, adapters(network)[name].rank) for part in matrix.parts]
        found.tensors.update({f"{module}.{kind}": tensor for kind, tensor in _joined(matrix, parts).items()})
        target = targets[module]
        if target not in found.targets:
            found.targets.append(target)
        if len(parts) > 1:
            found.parts[target] = len(parts)
        found = found._replace(transposed=matrix.transposed)
    return found


def split_adapter(matrix: FileTensor, stored: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """The adapters of a matrix's parts, by their names in our networks.

    Args:
        matrix: of a file.
        stored: its adapter: A, B and perhaps NORMS.
        rank: r. If the stored rank is n r and B is block diagonal, this undoes ``to_peft``; otherwise each part gets
            the whole A and its own rows of B, and has the stored rank.
    """
    if len(matrix.parts) == 1:
        return {f"{module_of(matrix.parts[0])}.{kind}": tensor for kind, tensor in stored.items()}
    a, rows = stored[A], _rows(matrix, stored[B])
    blocks = dict(zip(matrix.parts, [slice(i * rank, (i + 1) * rank) for i in range(len(matrix.parts))], strict=True))
    if is_block_diagonal(matrix, stored, rank):
        found = {part: {A: a[blocks[part]], B: b[:, blocks[part]]} for part, b in rows.items() if a[blocks[part]].any()}
    else:
        found = {part: {A: a, B: b} for part, b in rows.items()}
    for part, norms in _rows(matrix, stored[NORMS]).items() if NORMS in stored else ():
        if part in found:
            found[part][NORMS] = norms
    return {f"{module_of(part)}.{kind}": tensor for part, tensors in found.items() for kind, tensor in tensors.items()}


def is_block_diagonal(matrix: FileTensor, stored: Mapping[str, torch.Tensor], rank: int) -> bool:
    """Whether an adapter on a matrix of n parts consists of one of ``rank`` on each."""
    if len(stored[A]) != len(matrix.parts) * rank:
        return False
    blocks = [b.unflatten(1, (-1, rank)) for b in _rows(matrix, stored[B]).values()]
    others = [block[:, [j for j in range(len(blocks)) if j != i]] for i, block in enumerate(blocks)]
    return not any(block.any() for block in others)


def module_of(name: str) -> str:
    """The module of a matrix."""
    return name.removesuffix(".weight")


def _targets(modules: Mapping[str, FileTensor]) -> dict[str, str]:
    """The shortest ends of modules' names that mean the same matrix of every block: ``c_attn``, ``mlp.c_proj``."""
    parents: dict[str, set[str]] = {}
    for module in modules:
        *_, parent, last = module.split(".")
        parents.setdefault(last, set()).add(parent)
    found = {}
    for module in modules:
        *_, parent, last = module.split(".")
        found[module] = last if len(parents[last]) == 1 else f"{parent}.{last}"
    return found


def _part(
    network: GPT | ScalarGPT, stored: Mapping[str, torch.Tensor], part: str, rank: int
) -> dict[str, torch.Tensor]:
    """The adapter of one of our matrices; where it has none, one that changes nothing."""
    module = module_of(part)
    found = {kind: stored[f"{module}.{kind}"] for kind in (A, B, NORMS) if f"{module}.{kind}" in stored}
    if found:
        return found
    weight = dense(base_parameters(network)[part]).detach()
    rows, width = weight.shape
    norms = torch.linalg.vector_norm(weight.float(), dim=1)
    zeros = {A: torch.zeros(rank, width), B: torch.zeros(rows, rank), NORMS: norms}
    return {kind: tensor.to(weight.device) for kind, tensor in zeros.items()}


def _joined(matrix: FileTensor, parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One adapter on a file's matrix from those of its parts."""
    if len(parts) == 1:
        return parts[0]
    count, rank = len(parts), len(parts[0][A])
    padded = [F.pad(part[B], (i * rank, (count - 1 - i) * rank)) for i, part in enumerate(parts)]
    joined = {A: torch.cat([part[A] for part in parts]), B: _join_rows(matrix, padded)}
    if all(NORMS in part for part in parts):
        joined[NORMS] = _join_rows(matrix, [part[NORMS] for part in parts])
    return joined


def _join_rows(matrix: FileTensor, parts: list[torch.Tensor]) -> torch.Tensor:
    # peft's tensors are [out, r], also over an [in, out] matrix.
    return in_file(matrix._replace(transposed=False), dict(zip(matrix.parts, parts, strict=True)))


def _rows(matrix: FileTensor, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(split_parts(matrix._replace(transposed=False), tensor))
