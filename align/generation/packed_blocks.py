"""Blocks with packed weights for sampling: fewer, more efficient products with the same results up to rounding.

Legend: R rows, T tokens, H query heads, K key/value heads, E width of one head, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from align.adapters.merging import is_lora, merged_weight
from align.model.config import GPTConfig
from align.model.gpt import GPT, Trunk
from align.model.layers import Attention, Block, FeedForward, RMSNorm, activation
from align.model.positions import Tables

# Floats of padding between rows of a packed matrix: rows a power of two apart collide in the cache.
_STRIDE_PADDING = 16

_PLAIN = {GPT, Trunk, Block, Attention, FeedForward, RMSNorm, nn.Linear, nn.Embedding, nn.LayerNorm, nn.ModuleList}

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(block index, queries ``[R, T, H, E]``, keys and values ``[R, T, K, E]``) -> ``[R, T, H E]``"""


def can_pack(network: GPT) -> bool:
    """Whether the weights and adapters alone determine the network: no hooks, parametrizations or sharded weights."""
    return (
        type(network) is GPT
        and not network.model.reference_attention
        and all(_plain(module) for module in _without_adapters(network))
        and all(type(parameter) is nn.Parameter for parameter in network.parameters())
    )


def _without_adapters(module: nn.Module) -> Iterator[nn.Module]:
    """A module and all its submodules; for a layer with adapters the base only, as packing merges them."""
    if is_lora(module):
        module = cast(nn.Module, module.base_layer)
    yield module
    for child in module.children():
        yield from _without_adapters(child)


def _plain(module: nn.Module) -> bool:
    return type(module) in _PLAIN and not module._forward_hooks and not module._forward_pre_hooks


def pack(weights: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Stack matrices and store them input-major, the fastest layout for products with few rows on a CPU.

    Args:
        weights: each ``[outputs, inputs]``.
        dtype: of the copy.

    Returns:
        ``[sum of outputs, inputs]``, a transposed view of the copy.
    """
    outputs, inputs = sum(len(weight) for weight in weights), weights[0].shape[1]
    memory = weights[0].new_empty(inputs, outputs + _STRIDE_PADDING, dtype=dtype)
    return memory[:, :outputs].t().copy_(torch.cat(list(weights)))


def normalise(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply ``norm`` to ``x`` ``[..., D]``; an RMSNorm in fewer passes than its CPU kernel."""
    if not isinstance(norm, RMSNorm) or not (x.dtype == torch.float32 or (x.dtype == torch.float64 and norm.exact)):
        return norm(x)
    return (x * x.square().mean(-1, keepdim=True).add_(norm.eps).rsqrt_()).mul_(norm.factor)


class Rotations(NamedTuple):
    """RoPE rotations as complex numbers, of some positions.

    Attributes:
        full: ``[T, 1, E / 2]`` or ``[R, T, 1, E / 2]`` complex, for blocks without a window.
        windowed: the same for blocks with one.
    """

    full: torch.Tensor
    windowed: torch.Tensor

    def at(self, positions: torch.Tensor) -> "Rotations":
        """Those of ``positions``, int64 indices along the first axis."""
        full = self.full[positions]
        return Rotations(full, full if self.windowed is self.full else self.windowed[positions])


def rotations_of(trunk: Trunk, slots: int, device: torch.device) -> Rotations | None:
    """The rotations of positions 0 to ``slots`` - 1; None without rope."""
    config, positions = trunk.config, torch.arange(slots, device=device)
    if (tables := trunk.rotary(positions)) is None:
        return None
    resting = (config.resolved_head_width - config.rotated_width) // 2
    full = _as_complex(tables, resting)
    local = trunk.rotary(positions, windowed=True) if config.window_rope_theta is not None else None
    return Rotations(full, full if local is None else _as_complex(local, resting))


def _as_complex(tables: Tables, resting: int) -> torch.Tensor:
    """Tables ``[T, N / 2]`` as ``[T, 1, E / 2]``, with ``resting`` pairs that are not rotated."""
    return F.pad(torch.complex(*tables), (0, resting), value=1.0)[:, None]


class PackedBlock:
    """A block with fused query, key and value matrices, and fused gate and up matrices.

    With rope, components of queries and keys are reordered so that rotated pairs are adjacent: one complex product
    rotates them, and dot products don't depend on the order. Pairs that are not rotated are multiplied by 1.
    """

    def __init__(self, block: Block, config: GPTConfig, dtype: torch.dtype) -> None:
        """Copy the matrices of ``block`` as ``dtype``; the norms are shared."""
        attention, mlp = block.self_attn, block.mlp
        self.block, self.eps = block, config.norm_eps
        self.heads, self.kv_heads, self.head_width = config.heads, config.resolved_kv_heads, config.resolved_head_width
        self.rotated = config.rotated_width if config.positions == "rope" else 0
        self.qk_norm, self.act = config.qk_norm, activation(config)
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = pack(
            [*(self._paired(merged_weight(layer)) for layer in projections[:2]), merged_weight(projections[2])], dtype
        )
        self.qkv_bias = None
        if config.qkv_bias:
            biases = [*(self._paired(layer.bias) for layer in projections[:2]), projections[2].bias]
            self.qkv_bias = torch.cat(biases).to(dtype)
        self.scales: list[torch.Tensor] = []
        if attention.q_norm is not None and attention.k_norm is not None:
            norms = ((attention.q_norm, self.heads), (attention.k_norm, self.kv_heads))
            factors = [(self._paired(norm.factor).unflatten(0, (-1, self.head_width)), heads) for norm, heads in norms]
            self.scales = [factor.expand(heads, -1).to(dtype) for factor, heads in factors]
        self.out = pack([merged_weight(attention.o_proj)], dtype)
        ups = [mlp.up_proj] if mlp.gate_proj is None else [mlp.gate_proj, mlp.up_proj]
        self.gated = mlp.gate_proj is not None
        self.up = pack([merged_weight(layer) for layer in ups], dtype)
        self.up_bias = torch.cat([layer.bias for layer in ups]).to(dtype) if config.bias else None
        self.down = pack([merged_weight(mlp.down_proj)], dtype)

    def __call__(
        self,
        x: torch.Tensor,
        *,
        rotations: Rotations | None,
        attend: Attend,
        only: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Apply the block to the residual stream.

        Args:
            x: ``[R, T, D]``.
            rotations: of the positions; None without rope.
            attend: attention over the cache.
            only: selects the tokens ``[R, T', ...]`` of ``[R, T, ...]`` whose output is needed; None means all. The
                others only provide keys and values.

        Returns:
            ``[R, T', D]``.
        """
        block = self.block
        inward = block.input_layernorm, block.post_attention_layernorm
        outward = block.attention_output_layernorm, block.mlp_output_layernorm
        mixed = self._attention(self._before(inward[0], x), rotations, attend)
        if only is not None:
            x, mixed = only(x), only(mixed)
        mixed = F.linear(mixed, self.out, block.self_attn.o_proj.bias)
        attended = self._add(x, mixed, outward[0], inward[0])
        fed = self._feed_forward(self._before(inward[1], x if block.parallel else attended))
        return self._add(attended, fed, outward[1], inward[1])

    def _before(self, norm: nn.Module | None, x: torch.Tensor) -> torch.Tensor:
        return x if norm is None or self.block.post_norm else normalise(norm, x)

    def _add(
        self, x: torch.Tensor, output: torch.Tensor, output_norm: nn.Module | None, norm: nn.Module | None
    ) -> torch.Tensor:
        total = x + (output if output_norm is None else normalise(output_norm, output))
        return normalise(norm, total) if self.block.post_norm and norm is not None else total

    def _attention(self, x: torch.Tensor, rotations: Rotations | None, attend: Attend) -> torch.Tensor:
        mixed = F.linear(x, self.qkv, self.qkv_bias).unflatten(-1, (-1, self.head_width))
        rotated, values = mixed.split((self.heads + self.kv_heads, self.kv_heads), dim=-2)
        if self.scales:
            rotated = self._normalised(rotated)
        attention = self.block.self_attn
        if rotations is not None and attention.rotated:
            turns = rotations.windowed if attention.windowed else rotations.full
            # There are no complex numbers below float32.
            pairs = rotated.to(torch.promote_types(rotated.dtype, torch.float32)).unflatten(-1, (-1, 2))
            rotated = torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2).to(rotated.dtype)
        queries, keys = rotated.split((self.heads, self.kv_heads), dim=-2)
        return attend(attention.layer, queries, keys, values)

    def _normalised(self, rotated: torch.Tensor) -> torch.Tensor:
        """Normalize queries and keys ``[R, T, H + K, E]``, by head or over all heads of either."""
        if self.qk_norm == "head":
            return F.rms_norm(rotated, (self.head_width,), eps=self.eps) * torch.cat(self.scales)
        sides = zip(rotated.split((self.heads, self.kv_heads), dim=-2), self.scales, strict=True)
        return torch.cat([F.rms_norm(side, side.shape[-2:], scale, self.eps) for side, scale in sides], dim=-2)

    def _feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.linear(x, self.up, self.up_bias)
        if self.gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = self.act(gate).mul_(up)
        else:
            inner = self.act(inner)
        return F.linear(inner, self.down, self.block.mlp.down_proj.bias)

    def _paired(self, parameter: torch.Tensor) -> torch.Tensor:
        """Make components i and i + N / 2 of the N rotated ones of each head adjacent, along the first axis."""
        if not self.rotated:
            return parameter
        heads = parameter.unflatten(0, (-1, self.head_width))
        pairs = heads[:, : self.rotated].unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return torch.cat((pairs, heads[:, self.rotated :]), dim=1).flatten(0, 1)
