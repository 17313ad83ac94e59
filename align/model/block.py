"""One transformer block: attention, feed-forward, and where they are normalised.

Legend: B rows, T tokens, R places, D width, F width inside the feed-forward.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from align.model.attention import Attention, Context, at
from align.model.config import GPTConfig
from align.model.norms import make_norm

Recompute = Literal["none", "selective", "block"]
"""What the backward pass makes again instead of keeping it: nothing, the feed-forward, the whole block"""


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

    Attributes:
        recompute: what a forward with gradients does not keep (activation checkpointing, Chen et al. 2016,
            arXiv:1604.06174); losses and gradients are the same to the bit. ``selective`` makes the feed-forward
            again, which holds most of a block's activations and none of its attention's.
        draws: whether a forward in training draws dropout, an adapter's included.
        compiled: a compiled ``compute``, used where gradients are wanted and shapes are few; see ``compile_blocks``.
    """

    recompute: Recompute = "none"
    draws: bool = True
    compiled: Callable[..., torch.Tensor] | None = None

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
        if context.fixed_shapes and self.compiled is not None:
            return self.compiled(x, context, places)
        return self.compute(x, context, places)

    def compute(self, x: torch.Tensor, context: Context, places: torch.Tensor | None = None) -> torch.Tensor:
        """``forward`` without the compiler."""
        if self.recompute == "block" and torch.is_grad_enabled():
            return self._again(partial(self._both, context=context, places=places), x)
        return self._both(x, context, places)

    def _both(self, x: torch.Tensor, context: Context, places: torch.Tensor | None) -> torch.Tensor:
        chosen = x if places is None else at(x, places)
        if self.pre_norm:
            x = chosen + self._drop(self.self_attn(self.input_layernorm(x), context, places))
        else:
            x = self.input_layernorm(chosen + self._drop(self.self_attn(x, context, places)))
        if self.recompute == "selective" and torch.is_grad_enabled():
            return self._again(self._feed, x)
        return self._feed(x)

    def _feed(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre_norm:
            return x + self._drop(self.mlp(self.post_attention_layernorm(x)))
        return self.post_attention_layernorm(x + self._drop(self.mlp(x)))

    def _again(self, part: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        # Where nothing is drawn, the generators need not be put back.
        out: torch.Tensor = checkpoint(part, x, use_reentrant=False, preserve_rng_state=self.training and self.draws)
        return out

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, training=self.training)
