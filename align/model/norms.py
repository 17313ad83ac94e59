"""Normalisation layers."""

import torch
import torch.nn.functional as F
from torch import nn

from align.model.config import GPTConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467); the mean is taken in at least float32."""

    def __init__(self, width: int, eps: float) -> None:
        """Normalise the last axis, of ``width`` components; ``eps`` is added to the mean square."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` ``[..., width]``; the result keeps its dtype."""
        # Under autocast queries and keys are bfloat16 and the weight float32, which the fused kernel refuses.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: GPTConfig) -> nn.Module:
    """The residual stream's normalisation; a LayerNorm has a bias iff ``config.bias``, an RMSNorm never."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.width, config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)
