"""A linear layer with one LoRA adapter as a single operation: fewer passes over its output, and fewer stored tensors.

Imports peft, which imports transformers: import it only where adapters are used.

Legend: N tokens, r rank, out, in: dimensions of the matrix.
"""

from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


class LowRankLinear(peft.tuners.lora.Linear):
    """peft's layer, computed by ``low_rank_linear`` where that is possible, and by peft otherwise.

    Not possible: several adapters or none active, DoRA, dropout, a trained, quantized or sharded base, different
    dtypes, autocast, and compilation, which fuses on its own.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Output ``[..., out]`` of ``x`` ``[..., in]``."""
        name = None if args or kwargs or torch.compiler.is_compiling() else self._single_adapter(x)
        if name is None:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        a: Any = self.lora_A[name]
        b: Any = self.lora_B[name]
        return low_rank_linear(x, base.weight, base.bias, a.weight, b.weight, scale=self.scaling[name])

    def _single_adapter(self, x: torch.Tensor) -> str | None:
        """The adapter, if ``low_rank_linear`` computes what peft would."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or torch.is_autocast_enabled(x.device.type):
            return None
        (name,) = active
        base: Any = self.base_layer
        weights = [base.weight, self.lora_A[name].weight, self.lora_B[name].weight]
        plain = (
            type(x) is torch.Tensor and type(base) is nn.Linear and not any(p.requires_grad for p in base.parameters())
        )
        plain = plain and all(type(weight) is nn.Parameter and weight.dtype == x.dtype for weight in weights)
        simple = name not in self.lora_variant and isinstance(self.lora_dropout[name], nn.Identity)
        return name if plain and simple else None


def low_rank_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    scale: float,
) -> torch.Tensor:
    """``x W^T + bias + scale x A^T B^T``; W and bias get no gradient.

    Args:
        x: ``[..., in]``.
        weight: W ``[out, in]``.
        bias: ``[out]`` or None.
        a: A ``[r, in]``.
        b: B ``[out, r]``.
        scale: of the adapter.

    Returns:
        ``[..., out]``.
    """
    out: torch.Tensor = _LowRankLinear.apply(x, weight, bias, a, b, scale)
    return out


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        inputs = x.reshape(-1, x.shape[-1])
        low = inputs @ a.t()
        out = F.linear(inputs, weight, bias).addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(inputs, weight, a, b, low)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight, a, b, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_a = grad_b = None
        grad_low = (grad @ b).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, a).view(ctx.shape)
        if ctx.needs_input_grad[3]:
            grad_a = grad_low.t() @ inputs
        if ctx.needs_input_grad[4]:
            grad_b = (grad.t() @ low).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None
