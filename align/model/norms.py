"""Normalisation layers."""

import torch
import torch.nn.functional as F
from torch import nn

from align.model.config import GPTConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467); the mean is taken in float32.

    In float32 for float64 input too, operation by operation as transformers does it: a float64 copy of a network then
    gives transformers' float64 logits, to the bit where everything else is. ``exact = True`` takes float64 in float64,
    for tests that hold two ways of ours equal.
    """

    exact = False

    def __init__(self, width: int, eps: float) -> None:
        """Normalise the last axis, of ``width`` components; ``eps`` is added to the mean square."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` ``[..., width]``; the result keeps its dtype."""
        if x.dtype == torch.float64 and not self.exact:
            single = x.float()
            single = single * torch.rsqrt(single.pow(2).mean(-1, keepdim=True) + self.eps)
            return self.weight * single.to(x.dtype)
        # Under autocast queries and keys are bfloat16 and the weight float32, which the fused kernel refuses.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: GPTConfig) -> nn.Module:
    """The residual stream's normalisation; a LayerNorm has a bias iff ``config.bias``, an RMSNorm never."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.width, config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)
