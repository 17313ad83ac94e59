"""Causal attention: who sees whom, and two implementations.

Legend: B rows, T tokens (queries), S slots (keys), H query heads, K key/value heads, E width of one head.
"""

from typing import Protocol

import torch
import torch.nn.functional as F


class Attend(Protocol):
    """Attention of queries over keys and values; ``attend_reference`` defines it."""

    def __call__(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        mask: torch.Tensor | None,
        dropout: float,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """See ``attend_reference``."""
        ...


def soft_capped(scores: torch.Tensor, cap: float | None) -> torch.Tensor:
    """``cap tanh(scores / cap)`` (Gemma 2, arXiv:2408.00118, section 2), or the scores if there is no cap."""
    return scores if cap is None else cap * torch.tanh(scores / cap)


def document_mask(documents: torch.Tensor) -> torch.Tensor:
    """Block-diagonal causal mask: a token sees itself and earlier tokens of its own document.

    Padding (-1) counts as one more document, so that no row of the softmax is empty.

    Args:
        documents: ``[B, T]`` int64, index of the document within the row, -1 on padding.

    Returns:
        ``[B, 1, T, T]`` bool, True = attend.
    """
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same.tril()


def cache_mask(positions: torch.Tensor, slots: int) -> torch.Tensor:
    """A query at position p sees slots 0..p, because a token's slot is its position.

    Args:
        positions: ``[T]`` or ``[B, T]`` int64.
        slots: S.

    Returns:
        ``[T, S]`` or ``[B, 1, T, S]`` bool, True = attend.
    """
    visible = torch.arange(slots, device=positions.device) <= positions[..., None]
    return visible if positions.dim() == 1 else visible[:, None]


def narrow(mask: torch.Tensor | None, window: int, positions: torch.Tensor, slots: int) -> torch.Tensor | None:
    """The mask of sliding-window attention: a token sees itself and the ``window - 1`` tokens before it.

    Args:
        mask: without the window, True = attend; None: causal.
        window: in tokens.
        positions: ``[T]`` or ``[B, T]`` int64, the queries' slots; with a mask of documents, their index in the row.
        slots: S.

    Returns:
        ``[T, S]`` or ``[B, 1, T, S]`` bool; None (causal) if the window holds all slots and there is no mask.
    """
    if slots <= window:
        return mask
    slot = torch.arange(slots, device=positions.device)
    near = slot > positions[..., None] - window
    near = near if positions.dim() == 1 else near[:, None]
    if mask is not None:
        return mask & near
    causal = slot <= positions[..., None]
    return near & (causal if positions.dim() == 1 else causal[:, None])


def attend_reference(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    dropout: float,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention by its definition: softmax(cap(scale q k^T) + mask) v, with the softmax in at least float32.

    Args:
        queries: ``[B, H, T, E]``.
        keys: ``[B, K, S, E]``; each key head serves H / K adjacent query heads.
        values: as ``keys``.
        mask: bool, True = attend, broadcastable to ``[B, H, T, S]``; None means causal and requires T = S.
        dropout: probability of zeroing an attention weight.
        scale: factor of the products; None: 1 / sqrt(E).
        softcap: of the scores, see ``soft_capped``; None: none.

    Returns:
        ``[B, H, T, E]``.
    """
    groups = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    if mask is None:
        mask = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=queries.device).tril()
    scores = queries @ keys.transpose(-2, -1) * (queries.shape[-1] ** -0.5 if scale is None else scale)
    scores = soft_capped(scores, softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return weights.to(values.dtype) @ values


def attend_fast(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    dropout: float,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """As ``attend_reference``, with torch's fused kernels, which have no soft cap."""
    if softcap is not None:
        return attend_reference(queries, keys, values, mask=mask, dropout=dropout, scale=scale, softcap=softcap)
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
