"""The layers of a GPT: normalization, attention, feed-forward, and the block of these.

Legend: B rows, T tokens (queries), S slots (keys), R selected tokens, H query heads, K key/value heads, D width,
E width of one head.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from align.model.attention import Attend
from align.model.config import GPTConfig
from align.model.kv_cache import KVCache
from align.model.norms import rms_norm
from align.model.positions import Tables, rotate
from align.model.rebuilding import after_norm, checkpointed, rebuilding, swiglu


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467); the mean is taken in float32.

    With ``offset`` the factor is 1 + weight, as in Gemma.

    Float64 input is normalized in float32 too, with transformers' order of operations, so that a float64 network gives
    transformers' float64 logits, up to float64's rounding. ``exact = True`` computes float64 in float64, for tests that
    compare two code paths.
    """

    exact = False

    def __init__(self, width: int, eps: float, *, offset: bool = False) -> None:
        """Normalize the last axis, of ``width`` elements; ``eps`` is added to the mean square."""
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.zeros(width) if offset else torch.ones(width))

    @property
    def factor(self) -> torch.Tensor:
        """``[width]``, what normalized elements are multiplied by."""
        return 1.0 + self.weight if self.offset else self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize ``x`` ``[..., width]``; the dtype does not change."""
        if x.dtype == torch.float64 and not self.exact:
            single = x.float()
            single = single * torch.rsqrt(single.pow(2).mean(-1, keepdim=True) + self.eps)
            if self.offset:  # which Gemma adds and multiplies in float32
                return (single * (1.0 + self.weight.float())).to(x.dtype)
            return self.weight * single.to(x.dtype)
        # Under autocast queries and keys are bfloat16 and the weight float32, which the fused kernel refuses.
        return rms_norm(x, self.factor.to(x.dtype), self.eps)


def make_norm(config: GPTConfig) -> nn.Module:
    """The norm of the residual stream; a LayerNorm has a bias if ``config.bias``, an RMSNorm never."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.width, config.norm_eps, offset=config.norm_offset)
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)


class Context(NamedTuple):
    """What all blocks share in one forward pass.

    Attributes:
        attend: ``attend_fast`` or ``attend_reference``.
        mask: bool, True = attend, broadcastable to ``[B, H, T, S]``; None means causal.
        window_mask: the same for blocks with a window.
        rotary: cosine and sine tables, broadcastable to ``[B, H, T, N / 2]``; None without rope.
        window_rotary: the same for blocks with a window.
        positions: ``[T]`` or ``[B, T]`` int64; with a cache also the slots that are written.
        cache: of keys and values, or None.
        fixed_shapes: the shapes are among the few that blocks are compiled for.
    """

    attend: Attend
    mask: torch.Tensor | None
    window_mask: torch.Tensor | None
    rotary: Tables | None
    window_rotary: Tables | None
    positions: torch.Tensor
    cache: KVCache | None
    fixed_shapes: bool = False


class Attention(nn.Module):
    """Multi-head attention; reshapes infer the number of heads, because tensor parallelism splits them."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        """Build the projections of block ``layer``."""
        super().__init__()
        self.layer, self.head_width, self.dropout = layer, config.resolved_head_width, config.dropout
        self.kv_heads = config.resolved_kv_heads  # on this device
        self.scale, self.softcap = config.attention_scale, config.attention_softcap
        self.windowed, self.rotated = config.window_of(layer) is not None, layer not in config.no_rope_layers
        inner, kv_inner = config.heads * self.head_width, config.resolved_kv_heads * self.head_width
        self.q_proj = nn.Linear(config.width, inner, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, kv_inner, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, kv_inner, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.width, bias=config.bias)
        self.norms_heads = config.qk_norm == "head"
        widths = (self.head_width, self.head_width) if self.norms_heads else (inner, kv_inner)
        self.q_norm, self.k_norm = (
            None if config.qk_norm == "none" else RMSNorm(width, config.norm_eps, offset=config.norm_offset)
            for width in widths
        )

    def forward(self, x: torch.Tensor, context: Context, indices: torch.Tensor | None = None) -> torch.Tensor:
        """Attend within ``x`` ``[B, T, D]``, and to the cache if there is one; ``indices`` as in ``Block``."""
        queries, keys, values = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if not self.norms_heads:
            queries, keys = self._normalise(queries, keys)
        queries, keys, values = (heads.unflatten(-1, (-1, self.head_width)) for heads in (queries, keys, values))
        if self.norms_heads:
            queries, keys = self._normalise(queries, keys)
        queries, keys, values = (heads.transpose(1, 2) for heads in (queries, keys, values))
        rotary = context.window_rotary if self.windowed else context.rotary
        if rotary is not None and self.rotated:
            queries, keys = rotate(queries, *rotary), rotate(keys, *rotary)
        if context.cache is not None:
            keys, values = context.cache.update(self.layer, keys, values, positions=context.positions)
        mixed = context.attend(
            queries,
            keys,
            values,
            mask=context.window_mask if self.windowed else context.mask,
            dropout=self.dropout if self.training else 0.0,
            scale=self.scale,
            softcap=self.softcap,
        )

        def output() -> torch.Tensor:
            heads = mixed.transpose(1, 2).flatten(-2)
            return heads if indices is None else select_tokens(heads, indices)

        joined = output()
        with rebuilding(joined, output):
            return self.o_proj(joined)

    def _normalise(self, queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.q_norm is None or self.k_norm is None:
            return queries, keys
        return self.q_norm(queries), self.k_norm(keys)


def select_tokens(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Select ``[R, D]`` of ``x`` ``[B, T, D]`` by ``indices`` ``[R]`` int64: ``b * T + t`` for token t of row b."""
    return x.flatten(0, 1).index_select(0, indices)


Recompute = Literal["none", "selective", "block"]
"""What the backward pass recomputes instead of storing: nothing, the feed-forward layer, the whole block"""


class FeedForward(nn.Module):
    """``down(act(gate x) * up x)`` (arXiv:2002.05202) or, without a gate, ``down(act(up x))``."""

    def __init__(self, config: GPTConfig) -> None:
        """Build the projections."""
        super().__init__()
        inner = config.resolved_ff_width
        self.act, self.gate = activation(config), swiglu if config.feed_forward == "swiglu" else geglu
        self.gate_proj = nn.Linear(config.width, inner, bias=config.bias) if config.gated else None
        self.up_proj = nn.Linear(config.width, inner, bias=config.bias)
        self.down_proj = nn.Linear(inner, config.width, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform each token of ``x`` ``[B, T, D]``."""
        if self.gate_proj is None:
            activate = partial(self.act, self.up_proj(x))
        else:
            activate = partial(self.gate, self.gate_proj(x), self.up_proj(x))
        inner = activate()
        with rebuilding(inner, activate):
            return self.down_proj(inner)


def activation(config: GPTConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation function of the feed-forward layers."""
    return _ACTIVATIONS[config.feed_forward]


_tanh_gelu = partial(F.gelu, approximate="tanh")

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "swiglu": F.silu,
    "geglu": _tanh_gelu,
    "gelu": _tanh_gelu,
    "gelu_exact": F.gelu,
}


def geglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``gelu(gate) * up``, with the tanh form."""
    return _tanh_gelu(gate) * up


class Block(nn.Module):
    """Attention and feed-forward around the residual stream; ``norm_placement`` says where the norms are.

    - pre: ``x + f(norm(x))``
    - post: ``norm(x + f(x))``, as in Attention Is All You Need
    - output: ``x + norm(f(x))`` (OLMo-2, arXiv:2501.00656, section 3.1)
    - both: ``x + norm(f(norm(x)))`` (Gemma 2, arXiv:2408.00118, section 2)

    ``input_layernorm`` and ``post_attention_layernorm`` are Llama's, before the sub-layers, or with post after the
    sums. ``attention_output_layernorm`` and ``mlp_output_layernorm`` normalize outputs. With ``parallel_residual`` both
    sub-layers read x.

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
        placement = config.norm_placement
        outputs_only, outputs = placement == "output", placement in ("output", "both")
        self.input_layernorm = None if outputs_only else make_norm(config)
        self.post_attention_layernorm = None if outputs_only else make_norm(config)
        self.attention_output_layernorm = make_norm(config) if outputs else None
        self.mlp_output_layernorm = make_norm(config) if outputs else None
        self.post_norm, self.parallel, self.dropout = placement == "post", config.parallel_residual, config.dropout

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
        mixed = self._after(self.input_layernorm, self.self_attn, x, context, indices)
        attended = self._add(chosen, mixed, self.attention_output_layernorm, self.input_layernorm)
        feed = partial(self._feed, chosen) if self.parallel else self._feed
        if self.recompute == "selective" and torch.is_grad_enabled():
            return self._recomputed(feed, attended)
        return feed(attended)

    def _feed(self, *streams: torch.Tensor) -> torch.Tensor:
        """Add the feed-forward layer's output for the first stream to the last."""
        fed = self._after(self.post_attention_layernorm, self.mlp, streams[0])
        return self._add(streams[-1], fed, self.mlp_output_layernorm, self.post_attention_layernorm)

    def _after(self, norm: nn.Module | None, layer: nn.Module, x: torch.Tensor, *args: Any) -> torch.Tensor:
        """A sub-layer's output for x, normalized before where ``norm_placement`` says so."""
        return layer(x, *args) if norm is None or self.post_norm else after_norm(norm, layer, x, *args)

    def _add(
        self, x: torch.Tensor, output: torch.Tensor, output_norm: nn.Module | None, norm: nn.Module | None
    ) -> torch.Tensor:
        """Add a sub-layer's output to the residual stream, and normalize what ``norm_placement`` says."""
        total = x + self._drop(output if output_norm is None else output_norm(output))
        return norm(total) if self.post_norm and norm is not None else total

    def _recomputed(self, part: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        # Without dropout there is no generator state to restore.
        preserve = self.training and self.draws
        out: torch.Tensor = checkpoint(checkpointed(part), x, use_reentrant=False, preserve_rng_state=preserve)
        return out

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, training=self.training)
