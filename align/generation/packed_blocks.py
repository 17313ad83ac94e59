"""Blocks with packed weights for sampling: fewer, more efficient products with the same results up to rounding.

Legend: R rows, T tokens, H query heads, K key/value heads, E width of one head, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from align.adapters.merging import is_lora, merged_weight
from align.model.config import GPTConfig
from align.model.gpt import GPT, Trunk
from align.model.layers import Attention, Block, FeedForward, RMSNorm

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
    return (x * x.square().mean(-1, keepdim=True).add_(norm.eps).rsqrt_()).mul_(norm.weight)


class PackedBlock:
    """A block with fused query, key and value matrices, and fused gate and up matrices.

    With rope, components of queries and keys are reordered so that rotated pairs are adjacent: one complex product
    rotates them, and dot products don't depend on the order.
    """

    def __init__(self, block: Block, config: GPTConfig, dtype: torch.dtype) -> None:
        """Copy the matrices of ``block`` as ``dtype``; the norms are shared."""
        attention, mlp = block.self_attn, block.mlp
        self.block, self.eps = block, config.norm_eps
        self.heads, self.kv_heads, self.head_width = config.heads, config.resolved_kv_heads, config.resolved_head_width
        self.rotated = config.positions == "rope"
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = pack(
            [*(self._paired(merged_weight(layer)) for layer in projections[:2]), merged_weight(projections[2])], dtype
        )
        self.qkv_bias = None
        if config.qkv_bias:
            biases = [*(self._paired(layer.bias) for layer in projections[:2]), projections[2].bias]
            self.qkv_bias = torch.cat(biases).to(dtype)
        self.scales = None
        if attention.q_norm is not None and attention.k_norm is not None:
            q_scale, k_scale = self._paired(attention.q_norm.weight), self._paired(attention.k_norm.weight)
            self.scales = torch.cat((q_scale.expand(self.heads, -1), k_scale.expand(self.kv_heads, -1))).to(dtype)
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
        rotations: torch.Tensor | None,
        attend: Attend,
        only: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Apply the block to the residual stream.

        Args:
            x: ``[R, T, D]``.
            rotations: ``[T, 1, E / 2]`` or ``[R, T, 1, E / 2]`` complex, the rotations; None without rope.
            attend: attention over the cache.
            only: selects the tokens ``[R, T', ...]`` of ``[R, T, ...]`` whose output is needed; None means all. The
                others only provide keys and values.

        Returns:
            ``[R, T', D]``.
        """
        block, pre_norm = self.block, self.block.pre_norm
        mixed = self._attention(normalise(block.input_layernorm, x) if pre_norm else x, rotations, attend)
        if only is not None:
            x, mixed = only(x), only(mixed)
        x = x + F.linear(mixed, self.out, block.self_attn.o_proj.bias)
        if pre_norm:
            return x + self._feed_forward(normalise(block.post_attention_layernorm, x))
        x = normalise(block.input_layernorm, x)
        return normalise(block.post_attention_layernorm, x + self._feed_forward(x))

    def _attention(self, x: torch.Tensor, rotations: torch.Tensor | None, attend: Attend) -> torch.Tensor:
        mixed = F.linear(x, self.qkv, self.qkv_bias).unflatten(-1, (-1, self.head_width))
        rotated, values = mixed.split((self.heads + self.kv_heads, self.kv_heads), dim=-2)
        if self.scales is not None:
            rotated = F.rms_norm(rotated, (self.head_width,), eps=self.eps) * self.scales
        if rotations is not None:
            # There are no complex numbers below float32.
            pairs = rotated.to(torch.promote_types(rotated.dtype, torch.float32)).unflatten(-1, (-1, 2))
            rotated = torch.view_as_real(torch.view_as_complex(pairs) * rotations).flatten(-2).to(rotated.dtype)
        queries, keys = rotated.split((self.heads, self.kv_heads), dim=-2)
        return attend(self.block.self_attn.layer, queries, keys, values)

    def _feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.linear(x, self.up, self.up_bias)
        if self.gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = F.silu(gate).mul_(up)
        else:
            inner = F.gelu(inner, approximate="tanh")
        return F.linear(inner, self.down, self.block.mlp.down_proj.bias)

    def _paired(self, parameter: torch.Tensor) -> torch.Tensor:
        """Make components i and i + E / 2 of each head adjacent, along the first axis; no change without rope."""
        if not self.rotated:
            return parameter
        halves = parameter.unflatten(0, (-1, 2, self.head_width // 2))
        return halves.transpose(1, 2).flatten(0, 2)
