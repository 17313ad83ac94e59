"""Parameters of a network by part, from its configuration alone."""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import torch

from align.adapters.lora import LAYERS, LoraConfig
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.model.meta import built_without_memory

PARTS = ("embeddings", "attention", "feed_forward", "norms", "output", "head", "adapters")
"""Parts of a network, in the order of a report"""

_SPLIT_OUTPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Layers that tensor parallelism splits by outputs, bias included; ``o_proj`` and ``down_proj`` are split by inputs"""

_SPLIT_INPUTS = ("o_proj", "down_proj")


class Weight(NamedTuple):
    """A parameter tensor.

    Attributes:
        part: one of ``PARTS``.
        layer: the layer that has it, such as ``q_proj``.
        depth: index of its block; -1 outside the blocks.
        numel: elements.
        matrix: whether it has two axes.
        split: whether tensor parallelism splits it.
    """

    part: str
    layer: str
    depth: int
    numel: int
    matrix: bool
    split: bool = False

    @property
    def block(self) -> bool:
        """Whether it is in a block."""
        return self.depth >= 0

    @property
    def base(self) -> bool:
        """Whether it is the matrix of a block's linear layer, which QLoRA quantizes."""
        return self.block and self.matrix and self.part != "adapters"


@lru_cache(maxsize=64)
def shapes_of(config: GPTConfig, *, scalar: bool = False) -> GPT | ScalarGPT:
    """A network without memory: names, shapes and FLOPs of its parameters.

    Args:
        config: of the network.
        scalar: with a scalar head instead of an output matrix.
    """
    with built_without_memory():
        return ScalarGPT(config) if scalar else GPT(config)


@lru_cache(maxsize=64)
def weights_of(config: GPTConfig, *, scalar: bool = False) -> tuple[Weight, ...]:
    """The parameters of a network; tied ones once."""
    return tuple(_weight(name, p) for name, p in shapes_of(config, scalar=scalar).named_parameters())


def _weight(name: str, parameter: torch.Tensor) -> Weight:
    words = name.split(".")
    depth = int(words[words.index("layers") + 1]) if "layers" in words else -1
    layer, matrix = words[-2], parameter.dim() == 2
    split = layer in _SPLIT_OUTPUTS or (layer in _SPLIT_INPUTS and matrix)
    return Weight(_part(name), layer, depth, parameter.numel(), matrix, depth >= 0 and split)


def _part(name: str) -> str:
    if ".embed_" in name:
        return "embeddings"
    if name.startswith("lm_head"):
        return "output"
    if name.startswith("score"):
        return "head"
    if "norm" in name.split(".")[-2]:
        return "norms"
    return "attention" if ".self_attn." in name else "feed_forward"


@lru_cache(maxsize=64)
def adapter_weights(config: GPTConfig, lora: LoraConfig) -> tuple[Weight, ...]:
    """The parameters of an adapter: A ``[r, in]`` and B ``[out, r]`` of each target; with DoRA a vector ``[out]`` too.

    Tensor parallelism splits one of A and B, and replicates the other.
    """
    found = []
    for name, parameter in shapes_of(config).named_parameters():
        _, layer, depth, _, matrix, _ = _weight(name, parameter)
        if depth < 0 or not matrix or layer not in (lora.targets or LAYERS):
            continue
        outputs, inputs = parameter.shape
        by_outputs = layer in _SPLIT_OUTPUTS
        found.append(Weight("adapters", layer, depth, lora.rank * inputs, True, not by_outputs))
        found.append(Weight("adapters", layer, depth, lora.rank * outputs, True, by_outputs))
        if lora.dora:
            found.append(Weight("adapters", layer, depth, outputs, False))
    return tuple(found)


def by_part(weights: Iterable[Weight]) -> dict[str, int]:
    """Number of parameters of each part that has any."""
    counts = dict.fromkeys(PARTS, 0)
    for weight in weights:
        counts[weight.part] += weight.numel
    return {part: count for part, count in counts.items() if count}


def count(weights: Iterable[Weight]) -> int:
    """Number of parameters."""
    return sum(weight.numel for weight in weights)
