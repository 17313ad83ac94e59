"""Bytes of activations that a training step keeps from its forward to its backward pass.

Those that the graph keeps on a CPU, without dropout masks and kernels' workspaces.

Legend: B rows, T tokens, L layers, H query heads, K key/value heads, E width of one head, D width, F width inside the
feed-forward.
"""

from typing import NamedTuple

from align.adapters.lora import LAYERS, LoraConfig
from align.model.config import GPTConfig
from align.model.layers import Recompute

_IN_ATTENTION = 4
"""How many of ``LAYERS`` are in attention; the others are in the feed-forward layer"""


class BlockBytes(NamedTuple):
    """What a block keeps.

    Attributes:
        attention: of its first norm and attention, per token.
        feed_forward: of its second norm and feed-forward layer, per token.
        attention_matrices: bfloat16 copies that autocast makes of attention's matrices.
        feed_matrices: the same of the feed-forward layer's.
    """

    attention: int
    feed_forward: int
    attention_matrices: int
    feed_matrices: int


def activation_bytes(
    config: GPTConfig,
    rows: int,
    tokens: int,
    *,
    recompute: Recompute,
    narrow: bool,
    adapter: LoraConfig | None = None,
    tensor: int = 1,
) -> int:
    """Activations that a trunk keeps for ``rows * tokens`` positions, plus those recomputed at a time.

    Args:
        config: of the network.
        rows: B.
        tokens: T.
        recompute: see ``Block.recompute``.
        narrow: matrix products are in bfloat16.
        adapter: that trains instead of the weights, if any. With fewer targets than all, somewhat less is kept.
        tensor: devices of a tensor-parallel group, which split heads and F, but not the residual stream.
    """
    attention, feed, a_matrices, f_matrices = block_bytes(config, narrow=narrow, adapter=adapter, tensor=tensor)
    residual = 4 * config.width
    kept, again, matrices = {
        "none": (attention + feed, 0, a_matrices + f_matrices),
        "selective": (attention + residual, feed - residual, a_matrices),
        "block": (residual, attention + feed - residual, 0),
    }[recompute]
    # The last norm's input and output, and the gradient of the residual stream.
    ends = 4 * residual
    return rows * tokens * (config.layers * kept + again + ends) + config.layers * matrices


def block_bytes(config: GPTConfig, *, narrow: bool, adapter: LoraConfig | None = None, tensor: int = 1) -> BlockBytes:
    """What a block keeps; see ``activation_bytes`` for the arguments."""
    attention, feed = _attention_bytes(config, narrow, tensor), _feed_forward_bytes(config, narrow, tensor)
    if adapter is not None:
        # An adapted matrix also keeps A x.
        adapted = [name in (adapter.targets or LAYERS) for name in LAYERS]
        attention += (2 if narrow else 4) * adapter.rank * sum(adapted[:_IN_ATTENTION])
        feed += (2 if narrow else 4) * adapter.rank * sum(adapted[_IN_ATTENTION:])
    matrices = _matrix_bytes(config) if narrow else (0, 0)
    return BlockBytes(attention, feed, matrices[0] // tensor, matrices[1] // tensor)


def _attention_bytes(config: GPTConfig, narrow: bool, tensor: int) -> int:
    """Bytes that a block's first norm and attention keep per token.

    Queries, keys, values and attention's output in the dtype of the products; the log-partition of each head; in
    bfloat16, a copy of each product's input, which in float32 the backward pass computes again.
    """
    size = 2 if narrow else 4
    queries = config.heads * config.resolved_head_width // tensor
    keys = config.resolved_kv_heads * config.resolved_head_width // tensor
    inputs = 3 * 2 * config.width if narrow else 0
    mixed = size * (queries * 2 + 2 * keys)
    return (
        _norm_bytes(config)
        + inputs
        + mixed
        + 4 * config.heads // tensor
        + ((8 if narrow else 4) * (queries + keys) if config.qk_norm != "none" else 0)
    )


def _feed_forward_bytes(config: GPTConfig, narrow: bool, tensor: int) -> int:
    """Bytes that a block's second norm and feed-forward keep per token: gate and up, or only up."""
    size, gated = 2 if narrow else 4, config.gated
    inputs = (2 if gated else 1) * 2 * config.width if narrow else 0
    return _norm_bytes(config) + inputs + size * config.resolved_ff_width // tensor * (2 if gated else 1)


def _norm_bytes(config: GPTConfig) -> int:
    """A norm's float32 input."""
    return 4 * config.width


def _matrix_bytes(config: GPTConfig) -> tuple[int, int]:
    """bfloat16 copies that autocast makes of a block's matrices: attention's, and the feed-forward's."""
    queries = config.heads * config.resolved_head_width
    keys = config.resolved_kv_heads * config.resolved_head_width
    inner = config.resolved_ff_width * (3 if config.gated else 2)
    return 4 * config.width * (queries + keys), 2 * config.width * inner
