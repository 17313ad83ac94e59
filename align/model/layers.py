"""The layers of a GPT: normalization, positions, causal attention, feed-forward, and the block of these.

Legend: B rows, T tokens (queries), S slots (keys), R selected tokens, H query heads, K key/value heads, D width,
E width of one head.

RoPE tables are computed in float32 from integer positions in every forward pass and are not buffers, so nothing is cast
to bfloat16, missing on the meta device, or too short.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from align.model.config import GPTConfig, RopeScaling
from align.model.kv_cache import KVCache
from align.model.norms import rms_norm
from align.model.rebuilding import after_norm, checkpointed, rebuilding, swiglu


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467); the mean is taken in float32.

    Float64 input is normalized in float32 too, with transformers' order of operations, so that a float64 network gives
    transformers' float64 logits, up to float64's rounding. ``exact = True`` computes float64 in float64, for tests that
    compare two code paths.
    """

    exact = False

    def __init__(self, width: int, eps: float) -> None:
        """Normalize the last axis, of ``width`` elements; ``eps`` is added to the mean square."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize ``x`` ``[..., width]``; the dtype does not change."""
        if x.dtype == torch.float64 and not self.exact:
            single = x.float()
            single = single * torch.rsqrt(single.pow(2).mean(-1, keepdim=True) + self.eps)
            return self.weight * single.to(x.dtype)
        # Under autocast queries and keys are bfloat16 and the weight float32, which the fused kernel refuses.
        return rms_norm(x, self.weight.to(x.dtype), self.eps)


def make_norm(config: GPTConfig) -> nn.Module:
    """The norm of the residual stream; a LayerNorm has a bias if ``config.bias``, an RMSNorm never."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.width, config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)


def rotary_frequencies(
    head_width: int, *, theta: float, scaling: RopeScaling | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """RoPE frequencies, ``theta ** (-2 i / E)`` (RoFormer, arXiv:2104.09864).

    With ``scaling``, as in Llama 3: frequencies of long wavelengths are divided by ``factor``, those of short ones
    kept, and those between interpolated (arXiv:2407.21783; transformers' ``rope_type: llama3``).

    Returns:
        ``[E / 2]`` float32, radians per token.
    """
    pairs = torch.arange(0, head_width, 2, dtype=torch.int64, device=device).float() / head_width
    frequencies = 1.0 / theta**pairs
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((scaling.original_context / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def rotary_tables(positions: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the RoPE angles.

    Args:
        positions: ``[..., T]`` int64.
        frequencies: ``[E / 2]`` float32, radians per token.

    Returns:
        Two tensors ``[..., T, E / 2]`` float32.
    """
    angles = positions[..., None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (component i, component i + E / 2) by its angle; Hugging Face's half-split order.

    Args:
        x: ``[..., T, E]`` queries or keys.
        cos: ``[..., T, E / 2]``; broadcast over the heads of x.
        sin: as ``cos``.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def sinusoidal_embedding(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Sine on even and cosine on odd components (Attention Is All You Need, section 3.5).

    Args:
        positions: ``[..., T]`` int64.
        width: D, even.

    Returns:
        ``[..., T, D]`` float32.
    """
    cos, sin = rotary_tables(positions, rotary_frequencies(width, theta=10000.0, device=positions.device))
    return torch.stack((sin, cos), dim=-1).flatten(-2)


Attend = Callable[..., torch.Tensor]


class Context(NamedTuple):
    """What all blocks share in one forward pass.

    Attributes:
        attend: ``attend_fast`` or ``attend_reference``.
        mask: bool, True = attend, broadcastable to ``[B, H, T, S]``; None means causal.
        rotary: cosine and sine tables, broadcastable to ``[B, H, T, E / 2]``; None without rope.
        positions: ``[T]`` or ``[B, T]`` int64; with a cache also the slots that are written.
        cache: of keys and values, or None.
        fixed_shapes: the shapes are among the few that blocks are compiled for.
    """

    attend: Attend
    mask: torch.Tensor | None
    rotary: tuple[torch.Tensor, torch.Tensor] | None
    positions: torch.Tensor
    cache: KVCache | None
    fixed_shapes: bool = False


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


def attend_reference(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """Attention by its definition: softmax(q k^T / sqrt(E) + mask) v, with the softmax in at least float32.

    Args:
        queries: ``[B, H, T, E]``.
        keys: ``[B, K, S, E]``; each key head serves H / K adjacent query heads.
        values: as ``keys``.
        mask: as in ``Context``; None requires T = S.
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
    """As ``attend_reference``, with torch's fused kernels."""
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
    """Multi-head attention; reshapes infer the number of heads, because tensor parallelism splits them."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        """Build the projections of block ``layer``."""
        super().__init__()
        self.layer, self.head_width, self.dropout = layer, config.resolved_head_width, config.dropout
        self.kv_heads = config.resolved_kv_heads  # on this device
        inner, kv_inner = config.heads * self.head_width, config.resolved_kv_heads * self.head_width
        self.q_proj = nn.Linear(config.width, inner, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, kv_inner, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, kv_inner, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.width, bias=config.bias)
        self.q_norm = RMSNorm(self.head_width, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_width, config.norm_eps) if config.qk_norm else None

    def forward(self, x: torch.Tensor, context: Context, indices: torch.Tensor | None = None) -> torch.Tensor:
        """Attend within ``x`` ``[B, T, D]``, and to the cache if there is one; ``indices`` as in ``Block``."""
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

        def output() -> torch.Tensor:
            heads = mixed.transpose(1, 2).flatten(-2)
            return heads if indices is None else select_tokens(heads, indices)

        joined = output()
        with rebuilding(joined, output):
            return self.o_proj(joined)


def select_tokens(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Select ``[R, D]`` of ``x`` ``[B, T, D]`` by ``indices`` ``[R]`` int64: ``b * T + t`` for token t of row b."""
    return x.flatten(0, 1).index_select(0, indices)


Recompute = Literal["none", "selective", "block"]
"""What the backward pass recomputes instead of storing: nothing, the feed-forward layer, the whole block"""


class FeedForward(nn.Module):
    """SwiGLU, ``down(silu(gate x) * up x)`` (arXiv:2002.05202), or tanh GELU, ``down(gelu(up x))``."""

    def __init__(self, config: GPTConfig) -> None:
        """Build the projections."""
        super().__init__()
        inner, gated = config.resolved_ff_width, config.feed_forward == "swiglu"
        self.gate_proj = nn.Linear(config.width, inner, bias=config.bias) if gated else None
        self.up_proj = nn.Linear(config.width, inner, bias=config.bias)
        self.down_proj = nn.Linear(inner, config.width, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform each token of ``x`` ``[B, T, D]``."""
        if self.gate_proj is None:
            activate = partial(F.gelu, self.up_proj(x), approximate="tanh")
        else:
            activate = partial(swiglu, self.gate_proj(x), self.up_proj(x))
        inner = activate()
        with rebuilding(inner, activate):
            return self.down_proj(inner)


class Block(nn.Module):
    """Attention and feed-forward around the residual stream.

    Pre-norm: ``x + f(norm(x))``. Post-norm: ``norm(x + f(x))`` as in Attention Is All You Need. The norms keep the
    names of the pre-norm order for both.

    Attributes:
        recompute: what a forward pass with gradients does not store (activation checkpointing, Chen et al. 2016,
            arXiv:1604.06174); on a CPU losses and gradients are bitwise identical, because the same operations run
            again. ``selective`` recomputes the feed-forward layer, which has most of a block's activations.
        draws: whether a training forward pass samples dropout, including an adapter's.
        compiled: a compiled ``compute``, used with gradients and fixed shapes; see ``compile_blocks``.
    """

    recompute: Recompute = "none"
    draws: bool = True
    compiled: Callable[..., torch.Tensor] | None = None

    def __init__(self, config: GPTConfig, layer: int) -> None:
        """Build block ``layer``."""
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm = make_norm(config)
        self.post_attention_layernorm = make_norm(config)
        self.pre_norm, self.dropout = config.norm_placement == "pre", config.dropout

    def forward(self, x: torch.Tensor, context: Context, indices: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the block to the residual stream.

        Args:
            x: ``[B, T, D]``.
            context: shared by all blocks.
            indices: ``[R]`` int64, the tokens whose output is needed, ``b * T + t``; the others only provide keys and
                values. None means all.

        Returns:
            ``[B, T, D]``, or ``[R, D]`` with ``indices``.
        """
        if context.fixed_shapes and self.compiled is not None:
            return self.compiled(x, context, indices)
        return self.compute(x, context, indices)

    def compute(self, x: torch.Tensor, context: Context, indices: torch.Tensor | None = None) -> torch.Tensor:
        """``forward`` without the compiler."""
        if self.recompute == "block" and torch.is_grad_enabled():
            return self._recomputed(partial(self._attend_and_feed, context=context, indices=indices), x)
        return self._attend_and_feed(x, context, indices)

    def _attend_and_feed(self, x: torch.Tensor, context: Context, indices: torch.Tensor | None) -> torch.Tensor:
        chosen = x if indices is None else select_tokens(x, indices)
        if self.pre_norm:
            x = chosen + self._drop(after_norm(self.input_layernorm, self.self_attn, x, context, indices))
        else:
            x = self.input_layernorm(chosen + self._drop(self.self_attn(x, context, indices)))
        if self.recompute == "selective" and torch.is_grad_enabled():
            return self._recomputed(self._feed, x)
        return self._feed(x)

    def _feed(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre_norm:
            return x + self._drop(after_norm(self.post_attention_layernorm, self.mlp, x))
        return self.post_attention_layernorm(x + self._drop(self.mlp(x)))

    def _recomputed(self, part: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        # Without dropout there is no generator state to restore.
        preserve = self.training and self.draws
        out: torch.Tensor = checkpoint(checkpointed(part), x, use_reentrant=False, preserve_rng_state=preserve)
        return out

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, training=self.training)
