"""Causal self-attention with grouped queries, in a readable and a fast form that compute the same.

Legend: B rows, T tokens (queries), S slots (keys), H query heads, K key/value heads, E width of one head, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from align.model.cache import KVCache
from align.model.config import GPTConfig
from align.model.norms import RMSNorm
from align.model.positions import rotate

Attend = Callable[..., torch.Tensor]


class Context(NamedTuple):
    """What every block of one forward shares, made once.

    Attributes:
        attend: ``attend_fast`` or ``attend_reference``.
        mask: bool, True = may look, broadcastable to ``[B, H, T, S]``; None means plain causal.
        rotary: cosine and sine tables, broadcastable to ``[B, H, T, E / 2]``; None without rope.
        positions: ``[T]`` or ``[B, T]`` int64; with a cache also the slots that are written.
        cache: where keys and values are kept, or None.
        fixed_shapes: the shapes are among the few that compiled blocks are made for.
    """

    attend: Attend
    mask: torch.Tensor | None
    rotary: tuple[torch.Tensor, torch.Tensor] | None
    positions: torch.Tensor
    cache: KVCache | None
    fixed_shapes: bool = False


def document_mask(documents: torch.Tensor) -> torch.Tensor:
    """Block-diagonal causal mask: a token sees itself and what stands before it in its own document.

    Padding (-1) counts as one more document: it sees padding only, nobody sees it, and no row of the softmax is empty.

    Args:
        documents: ``[B, T]`` int64, the document's number within the row, -1 on padding.

    Returns:
        ``[B, 1, T, T]`` bool, True = may look.
    """
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same.tril()


def cache_mask(positions: torch.Tensor, slots: int) -> torch.Tensor:
    """A query at position p sees slots 0..p, because slot and position are the same number.

    Args:
        positions: ``[T]`` or ``[B, T]`` int64.
        slots: S.

    Returns:
        ``[T, S]`` or ``[B, 1, T, S]`` bool, True = may look.
    """
    visible = torch.arange(slots, device=positions.device) <= positions[..., None]
    return visible if positions.dim() == 1 else visible[:, None]


def attend_reference(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """Attention as written on paper: softmax(q k^T / sqrt(E) + mask) v, softmax in at least float32.

    Args:
        queries: ``[B, H, T, E]``.
        keys: ``[B, K, S, E]``; each key head serves H / K neighbouring query heads.
        values: as ``keys``.
        mask: as in ``Context``; with None T and S must be equal.
        dropout: probability of zeroing an attention weight.

    Returns:
        ``[B, H, T, E]``.
    """
    groups = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    if mask is None:
        mask = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=queries.device).tril()
    scores = queries @ keys.transpose(-2, -1) / queries.shape[-1] ** 0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return weights.to(values.dtype) @ values


def attend_fast(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """As ``attend_reference``, through torch's fused kernels."""
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )


class Attention(nn.Module):
    """Multi-head attention; heads are reshaped with -1 so that tensor parallelism may hold a share of them."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        """Build the projections of block number ``layer``."""
        super().__init__()
        self.layer, self.head_width, self.dropout = layer, config.resolved_head_width, config.dropout
        self.kv_heads = config.resolved_kv_heads  # of those that this device has
        inner, kv_inner = config.heads * self.head_width, config.resolved_kv_heads * self.head_width
        self.q_proj = nn.Linear(config.width, inner, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, kv_inner, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, kv_inner, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.width, bias=config.bias)
        self.q_norm = RMSNorm(self.head_width, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_width, config.norm_eps) if config.qk_norm else None

    def forward(self, x: torch.Tensor, context: Context, places: torch.Tensor | None = None) -> torch.Tensor:
        """Attend within ``x`` ``[B, T, D]``, and to the cache when there is one; ``places`` as in ``Block``."""
        queries, keys, values = (
            projection(x).unflatten(-1, (-1, self.head_width)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys, values = (heads.transpose(1, 2) for heads in (queries, keys, values))
        if context.rotary is not None:
            queries, keys = rotate(queries, *context.rotary), rotate(keys, *context.rotary)
        if context.cache is not None:
            keys, values = context.cache.update(self.layer, keys, values, positions=context.positions)
        dropout = self.dropout if self.training else 0.0
        mixed = context.attend(queries, keys, values, mask=context.mask, dropout=dropout)
        mixed = mixed.transpose(1, 2).flatten(-2)
        return self.o_proj(mixed if places is None else at(mixed, places))


def at(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """``[R, D]`` of ``x`` ``[B, T, D]``; place t of row b is ``b * T + t`` in ``places`` ``[R]`` int64."""
    return x.flatten(0, 1).index_select(0, places)
