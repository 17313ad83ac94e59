"""QLoRA: adapters over 4-bit weights (Dettmers et al. 2023, arXiv:2305.14314), using Lightning's plugin."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from lightning.fabric.plugins.precision.bitsandbytes import BitsandbytesPrecision
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import nn

from align.model.four_bit import MODES, FourBitLinear

_CPU_BLOCK = 64
"""bitsandbytes 0.50.2's CPU kernel assumes that no block of 64 crosses the end of a row"""

WRONG_PLUGIN = (
    "trainer.plugins has BitsandbytesPrecision, which would quantize adapters and heads as well: use "
    "align.training.FourBit, as recipes/hardware/qlora.yaml does"
)


class FourBit(Precision):
    """Lightning's ``BitsandbytesPrecision``, applied only to the frozen matrices below adapters.

    On its own that plugin quantizes every linear layer, including adapters and heads, and makes bfloat16 the default
    dtype of every new tensor, including losses and advantages. Here a stage chooses the matrices (``quantized``), and
    matrix products run under autocast, as in bf16-mixed.

    Args:
        mode: nf4 or fp4: 16 quantiles of a normal distribution, or 16 floats; -dq stores the scale of each block of 64
            in 8 bits instead of 32.
        dtype: of matrix products; float32 only where there is no bfloat16.

    Raises:
        ValueError: a setting is invalid, or bitsandbytes is not installed.
    """

    def __init__(
        self,
        mode: Literal["nf4", "nf4-dq", "fp4", "fp4-dq"] = "nf4-dq",
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
    ) -> None:
        """Store the settings."""
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}: it must be one of {', '.join(MODES)}")
        if dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype is {dtype!r}: it must be bfloat16, or float32 where there is no bfloat16")
        try:
            self._plugin = BitsandbytesPrecision(mode, getattr(torch, dtype))
        except ModuleNotFoundError:
            raise ValueError(
                "align.training.FourBit needs bitsandbytes, which is not installed: "
                'pip install "lightning-align[qlora]", or train with recipes/hardware/lora.yaml'
            ) from None
        self.mode = mode
        mixed = "bf16-mixed" if dtype == "bfloat16" else "32-true"
        self.precision: Any = f"{mixed}, {mode} below adapters"
        self.dtype = getattr(torch, dtype)
        self._products = Precision()  # becomes autocast once the device is known

    def quantized(self, layer: nn.Linear, device: torch.device) -> nn.Module:
        """A frozen 4-bit version of ``layer`` on ``device``.

        Raises:
            ValueError: the row width is one for which bitsandbytes uses wrong scales on a CPU.
        """
        if device.type == "cpu" and layer.in_features % _CPU_BLOCK:
            raise ValueError(
                f"a matrix has rows of {layer.in_features} weights: for 4 bits on a CPU, width and ff_width must be "
                f"multiples of {_CPU_BLOCK}, or bitsandbytes uses wrong scales; use a GPU, or lora without 4 bits"
            )
        holder = self._plugin.convert_module(nn.ModuleDict({"layer": layer}))
        # bitsandbytes quantizes when a layer moves to the device.
        packed: Any = holder.to(device).get_submodule("layer")
        if self.dtype == torch.bfloat16:
            self._products = MixedPrecision("bf16-mixed", device.type)
        return FourBitLinear(packed, self.dtype).requires_grad_(False)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast of matrix products to ``dtype``."""
        return self._products.forward_context()


def four_bit_plugin(precision: object, *, adapters: bool, sharded: bool) -> FourBit | None:
    """The Trainer's 4-bit plugin, if it has one.

    Args:
        precision: the Trainer's precision plugin.
        adapters: whether adapters are trained.
        sharded: whether the strategy shards weights.

    Raises:
        ValueError: the stage does not support it.
    """
    if isinstance(precision, BitsandbytesPrecision):
        raise ValueError(WRONG_PLUGIN)
    if not isinstance(precision, FourBit):
        return None
    if not adapters:
        raise ValueError(
            "trainer.plugins has align.training.FourBit, but 4-bit weights can't be trained: set model.init_args.lora, "
            "as recipes/hardware/qlora.yaml does"
        )
    if sharded:
        raise ValueError(
            "trainer.plugins has align.training.FourBit and trainer.strategy shards weights, which 4-bit weights do "
            "not support: use ddp, or leave FourBit out"
        )
    return precision
