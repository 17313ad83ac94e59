"""Matrices kept in 4 bits: what they stand for, and where they take the place of whole ones.

NF4 (Dettmers et al. 2023, arXiv:2305.14314, section 3) keeps blocks of 64 numbers as indices of 16 quantiles of a
normal distribution, times the largest of the block. Layers and kernels are bitsandbytes', which is imported only where
there are such weights.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

MODES: Mapping[str, dict[str, Any]] = {
    kind + suffix: {"quant_type": kind, "compress_statistics": bool(suffix)}
    for kind in ("nf4", "fp4")
    for suffix in ("", "-dq")
}
"""Names as in Lightning's ``BitsandbytesPrecision``: -dq keeps the blocks' largest numbers in 8 bits"""


def dense(weight: torch.Tensor) -> torch.Tensor:
    """The matrix ``[out, in]`` that a weight stands for: itself, or a new tensor where it is kept in 4 bits."""
    if not is_four_bit(weight):
        return weight
    packed: Any = weight
    # As one row: blocks go over the ends of rows, which the kernel for CPUs gets wrong (bitsandbytes 0.50.2).
    state = copy.copy(packed.quant_state)
    state.shape = torch.Size((1, numbers(weight)))
    found: torch.Tensor = _bitsandbytes().functional.dequantize_4bit(packed.data, state)
    return found.reshape(packed.quant_state.shape)


def is_four_bit(weight: torch.Tensor) -> bool:
    """Whether a weight is kept in 4 bits, two numbers to a byte."""
    return getattr(weight, "quant_state", None) is not None


def numbers(weight: torch.Tensor) -> int:
    """How many numbers a weight stands for."""
    packed: Any = weight
    return int(packed.quant_state.shape.numel()) if is_four_bit(weight) else weight.numel()


def replace_matrices(
    root: nn.Module, networks: Iterable[nn.Module], quantized: Callable[[nn.Linear], nn.Module]
) -> None:
    """Put another layer in the place of each matrix of the blocks of some networks, adapters left out.

    Args:
        root: below it, every network that stands on one of these matrices gets the same new layer.
        networks: whose blocks.
        quantized: makes the layer of one matrix, which it may use up.
    """
    blocks: list[Any] = [network.model.layers for network in networks]  # type: ignore[union-attr]
    chosen = {
        id(layer.weight)
        for block in blocks
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and ".lora_" not in name and not is_four_bit(layer.weight)
    }
    made: dict[int, nn.Module] = {}
    # No reference to the layers themselves: each is to go when it is replaced.
    for parent in [module for module in root.modules() if not isinstance(module, nn.Linear)]:
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, nn.Linear) or is_four_bit(layer.weight) or (key := id(layer.weight)) not in chosen:
                continue
            if key not in made:
                made[key] = quantized(layer)
            setattr(parent, name, made[key])


@torch.no_grad()
def round_matrices(network: nn.Module, mode: str) -> None:
    """Give the matrices of the blocks the values that they have in 4 bits, in place; their type stays.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    blocks: Any = network.model.layers  # type: ignore[union-attr]
    functional = _bitsandbytes().functional
    for layer in blocks.modules():
        if isinstance(layer, nn.Linear):
            # As one row; see dense.
            packed, state = functional.quantize_4bit(layer.weight.data.reshape(1, -1), **MODES[mode])
            layer.weight.copy_(functional.dequantize_4bit(packed, state).reshape(layer.weight.shape))


class FourBitLinear(nn.Linear):
    """``x W^T + b`` with a frozen W kept in 4 bits; products in one type, the result's.

    bitsandbytes' own layer computes in the type of what it read first, rounds its bias to that, and on some CPUs
    repacks W when it is evaluated, so that it can't be trained on nor read again.
    """

    def __init__(self, packed: nn.Linear, dtype: torch.dtype) -> None:
        """Take weight and bias of ``packed``, a layer that bitsandbytes quantized.

        Args:
            packed: is used up.
            dtype: of the products.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.dtype = packed.in_features, packed.out_features, dtype
        self.weight, self.bias = packed.weight, packed.bias
        self._product = _bitsandbytes().matmul_4bit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` to ``[..., out]``, of ``dtype``."""
        weight: Any = self.weight
        product: torch.Tensor = self._product(x.to(self.dtype), weight, quant_state=weight.quant_state)
        return product if self.bias is None else product + self.bias.to(self.dtype)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError:
        raise ValueError(
            'weights in 4 bits need bitsandbytes, which is not installed: pip install "lightning-align[qlora]"'
        ) from None
    return bitsandbytes
