"""4-bit matrices: quantize the matrices of a network, and dequantize them.

NF4 (Dettmers et al. 2023, arXiv:2305.14314, section 3) stores blocks of 64 weights as indices into 16 quantiles of a
normal distribution, scaled by the block's maximum. Layers and kernels are bitsandbytes', which is imported only where
there are 4-bit weights.
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
"""Named as in Lightning's ``BitsandbytesPrecision``: -dq stores the block scales in 8 bits"""


def dense(weight: torch.Tensor) -> torch.Tensor:
    """The ``[out, in]`` matrix of a weight: itself, or a new, dequantized tensor if it has 4 bits."""
    if not is_four_bit(weight):
        return weight
    packed: Any = weight
    # As one row: the CPU kernel is wrong where blocks cross the ends of rows (bitsandbytes 0.50.2).
    state = copy.copy(packed.quant_state)
    state.shape = torch.Size((1, numel(weight)))
    found: torch.Tensor = _bitsandbytes().functional.dequantize_4bit(packed.data, state)
    return found.reshape(packed.quant_state.shape)


def is_four_bit(weight: torch.Tensor) -> bool:
    """Whether a weight has 4 bits, two per byte."""
    return getattr(weight, "quant_state", None) is not None


def numel(weight: torch.Tensor) -> int:
    """Number of elements of a weight, also if two are packed into a byte."""
    packed: Any = weight
    return int(packed.quant_state.shape.numel()) if is_four_bit(weight) else weight.numel()


def replace_matrices(
    root: nn.Module, networks: Iterable[nn.Module], quantized: Callable[[nn.Linear], nn.Module]
) -> None:
    """Replace every linear layer in the blocks of some networks by a quantized one, except adapters.

    Args:
        root: every network below it that shares one of these matrices gets the same new layer.
        networks: whose blocks to quantize.
        quantized: makes the new layer; it may consume the old one.
    """
    blocks: list[Any] = [network.model.layers for network in networks]  # type: ignore[union-attr]
    chosen = {
        id(layer.weight)
        for block in blocks
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and ".lora_" not in name and not is_four_bit(layer.weight)
    }
    made: dict[int, nn.Module] = {}
    # Keep no reference to the layers, so that each is freed when it is replaced.
    for parent in [module for module in root.modules() if not isinstance(module, nn.Linear)]:
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, nn.Linear) or is_four_bit(layer.weight) or (key := id(layer.weight)) not in chosen:
                continue
            if key not in made:
                made[key] = quantized(layer)
            setattr(parent, name, made[key])


@torch.no_grad()
def round_matrices(network: nn.Module, mode: str) -> None:
    """Round the matrices of the blocks to their 4-bit values, in place; the dtype does not change.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    blocks: Any = network.model.layers  # type: ignore[union-attr]
    functional = _bitsandbytes().functional
    for layer in blocks.modules():
        if isinstance(layer, nn.Linear):
            # As one row; see ``dense``.
            packed, state = functional.quantize_4bit(layer.weight.data.reshape(1, -1), **MODES[mode])
            layer.weight.copy_(functional.dequantize_4bit(packed, state).reshape(layer.weight.shape))


class FourBitLinear(nn.Linear):
    """``x W^T + b`` with a frozen 4-bit W; the product and the result have one dtype.

    bitsandbytes' own layer computes in the dtype of its first input, rounds its bias to it, and on some CPUs repacks W
    in evaluation mode, after which it can neither be trained nor saved.
    """

    def __init__(self, packed: nn.Linear, dtype: torch.dtype) -> None:
        """Take weight and bias of ``packed``, a layer that bitsandbytes quantized.

        Args:
            packed: consumed.
            dtype: of the product.
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
            '4-bit weights need bitsandbytes, which is not installed: pip install "lightning-align[qlora]"'
        ) from None
    return bitsandbytes
