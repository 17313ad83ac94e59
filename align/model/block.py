"""One transformer block: attention, feed-forward, and where they are normalised.

Legend: B rows, T tokens, R places, D width, F width inside the feed-forward.
"""

import torch
import torch.nn.functional as F
from torch import nn

from align.model.attention import Attention, Context, at
from align.model.config import GPTConfig
from align.model.norms import make_norm


class FeedForward(nn.Module):
    """SwiGLU, ``down(silu(gate x) * up x)`` (arXiv:2002.05202), or GELU in its tanh form, ``down(gelu(up x))``."""

    def __init__(self, config: GPTConfig) -> None:
        """Build the projections."""
        super().__init__()
        inner, gated = config.resolved_ff_width, config.feed_forward == "swiglu"
        self.gate_proj = nn.Linear(config.width, inner, bias=config.bias) if gated else None
        self.up_proj = nn.Linear(config.width, inner, bias=config.bias)
        self.down_proj = nn.Linear(inner, config.width, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform ``x`` ``[B, T, D]`` token by token."""
        if self.gate_proj is None:
            return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward around the residual stream.

    Pre-norm: ``x + f(norm(x))``. Post-norm: ``norm(x + f(x))`` as in Attention Is All You Need. The norms keep the
    names of the pre-norm order for both.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        """Build block number ``layer``."""
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm = make_norm(config)
        self.post_attention_layernorm = make_norm(config)
        self.pre_norm, self.dropout = config.norm_placement == "pre", config.dropout

    def forward(self, x: torch.Tensor, context: Context, places: torch.Tensor | None = None) -> torch.Tensor:
        """One step of the residual stream.

        Args:
            x: ``[B, T, D]``.
            context: what all blocks share.
            places: ``[R]`` int64, the places whose output is wanted, ``b * T + t``; the others still give their keys
                and values. None means all.

        Returns:
            ``[B, T, D]``, or ``[R, D]`` with ``places``.
        """
        chosen = x if places is None else at(x, places)
        if self.pre_norm:
            x = chosen + self._drop(self.self_attn(self.input_layernorm(x), context, places))
            return x + self._drop(self.mlp(self.post_attention_layernorm(x)))
        x = self.input_layernorm(chosen + self._drop(self.self_attn(x, context, places)))
        return self.post_attention_layernorm(x + self._drop(self.mlp(x)))

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, training=self.training)
