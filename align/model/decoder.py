"""Reading prompts and then one token per row and step: plainly through the network, or with its weights packed.

Legend: R rows, T tokens, S slots of the cache, H query heads, K key/value heads, E width of one head, D width,
V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from align.model.attention import Attention, attend_fast
from align.model.block import Block, FeedForward
from align.model.cache import KVCache
from align.model.config import GPTConfig
from align.model.gpt import GPT, Trunk
from align.model.norms import RMSNorm
from align.model.positions import rotate

# Rows that attend together, over the slots of the longest of them: fewer read more memory for nothing (rows of one
# batch differ in length), more cost calls. 16 was the best of 4..64 on a CPU with prompts of 16..96 tokens.
_GROUP = 16
# Padded tokens of the prompts that are read together: large enough for full-speed products, small enough for caches.
_PREFILL_TOKENS = 1024
# Floats between the rows of a packed matrix: rows a power of two apart fall into the same few cache lines.
_STRIDE_PADDING = 16


class Decoder:
    """Rows being continued, through the network's own forward: the reference, and the way for changed networks.

    Attributes:
        cache: keys and values of every token read.
        positions: ``[R]`` int64, the slot of each row's next token.
    """

    def __init__(self, network: GPT, prompts: Sequence[Sequence[int]], *, slots: int) -> None:
        """Make room for ``slots`` tokens a row. ``prompts`` come longest first and hold at least one token each."""
        weight = network.output_weight
        device = weight.device
        autocast = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
        self.network, self.prompts = network, prompts
        self.cache = KVCache(network.config, len(prompts), slots, device, self.dtype)
        self.positions = torch.tensor([len(prompt) for prompt in prompts], device=device)

    def read_prompts(self) -> torch.Tensor:
        """Fill the cache with the prompts; returns the logits ``[R, V]`` after the last token of each."""
        ids = self._padded(self.prompts)
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.network.logits(
            _last(self.network.hidden(ids, positions=positions, cache=self.cache), self.positions)
        )

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Append ``ids`` ``[R]`` int64, one to each row; returns the logits ``[R, V]`` after them."""
        hidden = self.network.hidden(ids[:, None], positions=self.positions[:, None], cache=self.cache)
        self._advance()
        return self.network.logits(hidden[:, 0])

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only: ``[R']`` int64, ascending."""
        self.cache.keep(rows, int(self.positions.max()))
        self.positions = self.positions[rows]

    def _advance(self) -> None:
        # A finished row that still waits for its removal may come to the end of its slots; it stays there.
        self.positions = (self.positions + 1).clamp(max=self.cache.length - 1)

    def _padded(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        width = len(prompts[0])
        return torch.tensor(
            [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=self.positions.device
        )


class PackedDecoder(Decoder):
    """The same numbers sooner: matrices packed for thin products, no module calls, attention over live slots only.

    Packing costs one more copy of the matrices while it lives. Use it only where ``can_pack`` holds.
    """

    def __init__(self, network: GPT, prompts: Sequence[Sequence[int]], *, slots: int) -> None:
        """As ``Decoder``, and pack the weights."""
        super().__init__(network, prompts, slots=slots)
        self.layers = [
            _PackedBlock(layer, network.config, self.dtype) for layer in cast(Sequence[Block], network.model.layers)
        ]
        self.output = _pack([network.output_weight], self.dtype)
        self.rotary = network.model.rotary(torch.arange(slots, device=self.positions.device))
        self.lengths = [len(prompt) for prompt in prompts]

    def read_prompts(self) -> torch.Tensor:
        """See ``Decoder.read_prompts``; rows of like length are read together, so little is padding."""
        last = [self._read(start, stop) for start, stop in self._prefill_chunks()]
        return F.linear(torch.cat(last), self.output)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """See ``Decoder.step``."""
        slots = torch.arange(self.lengths[0] + 1, device=ids.device)
        mask = (slots <= self.positions[:, None])[:, None, None]
        config = self.network.config
        kv_heads = config.resolved_kv_heads

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            keys, values = self.cache.update(layer, keys, values, positions=self.positions[:, None])
            # The H / K query heads of one key head see the same slots: to the kernel they are queries of one head.
            queries = queries.unflatten(1, (kv_heads, -1)).squeeze(3)
            mixed = [
                F.scaled_dot_product_attention(
                    queries[rows], keys[rows, :, :live], values[rows, :, :live], attn_mask=mask[rows, :, :, :live]
                )
                for rows, live in self._groups()
            ]
            return torch.cat(mixed).reshape(len(ids), 1, -1)

        hidden = self._run(ids[:, None], self.positions[:, None], attend)
        self._advance()
        self.lengths = [min(length + 1, self.cache.length - 1) for length in self.lengths]
        return F.linear(hidden, self.output)

    def keep(self, rows: torch.Tensor) -> None:
        """See ``Decoder.keep``."""
        super().keep(rows)
        self.lengths = [self.lengths[row] for row in rows.tolist()]

    def _read(self, start: int, stop: int) -> torch.Tensor:
        """Read the prompts of rows ``start:stop``; returns ``[stop - start, D]`` after the last token of each."""
        ids = self._padded(self.prompts[start:stop])
        width = ids.shape[1]

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            self.cache.keys[layer, start:stop, :, :width] = keys
            self.cache.values[layer, start:stop, :, :width] = values
            return attend_fast(queries, keys, values, mask=None, dropout=0.0).transpose(1, 2).flatten(-2)

        return self._run(ids, torch.arange(width, device=ids.device), attend, self.positions[start:stop])

    def _run(
        self, ids: torch.Tensor, positions: torch.Tensor, attend: "_Attend", lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embeddings, blocks, final norm.

        Args:
            ids: ``[R, T]``.
            positions: ``[T]`` or ``[R, T]``.
            attend: attention over the cache.
            lengths: ``[R]``, tokens of each row that are not padding; None means T.

        Returns:
            ``[R, D]``, after the last token of each row.
        """
        trunk = self.network.model
        rotary = None
        if self.rotary is not None:
            rotary = tuple(table[positions].unsqueeze(-2) for table in self.rotary)
        x = trunk.embed(ids, positions)
        for number, layer in enumerate(self.layers):
            x = layer(number, x, rotary, attend)
        x = x[:, -1] if lengths is None else _last(x, lengths)
        return x if trunk.norm is None else trunk.norm(x)

    def _prefill_chunks(self) -> Iterator[tuple[int, int]]:
        start = 0
        while start < len(self.lengths):
            stop = min(start + max(1, _PREFILL_TOKENS // self.lengths[start]), len(self.lengths))
            yield start, stop
            start = stop

    def _groups(self) -> Iterator[tuple[slice, int]]:
        """Slices of rows and the slots that the longest of each looks at, its new token included."""
        size = _GROUP if self.positions.device.type == "cpu" else len(self.lengths)
        for start in range(0, len(self.lengths), size):
            yield slice(start, start + size), self.lengths[start] + 1


# The block's number, queries [R, H, T, E], keys and values [R, K, T, E] -> [R, T, H E].
_Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class _PackedBlock:
    """A block with its query, key and value matrices in one, its gate and up matrices in one."""

    def __init__(self, block: Block, config: GPTConfig, dtype: torch.dtype) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.block, self.eps = block, config.norm_eps
        self.heads, self.kv_heads, self.head_width = config.heads, config.resolved_kv_heads, attention.head_width
        self.qkv = _Packed([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.o = _Packed([attention.o_proj], dtype)
        self.gated = mlp.gate_proj is not None
        self.up = _Packed([mlp.up_proj] if mlp.gate_proj is None else [mlp.gate_proj, mlp.up_proj], dtype)
        self.down = _Packed([mlp.down_proj], dtype)
        self.scales = None
        if attention.q_norm is not None and attention.k_norm is not None:
            scales = [attention.q_norm.weight.expand(self.heads, -1), attention.k_norm.weight.expand(self.kv_heads, -1)]
            self.scales = torch.cat(scales)

    def __call__(
        self, number: int, x: torch.Tensor, rotary: tuple[torch.Tensor, ...] | None, attend: _Attend
    ) -> torch.Tensor:
        block = self.block
        if block.pre_norm:
            x = x + self.attention(number, block.input_layernorm(x), rotary, attend)
            return x + self.feed_forward(block.post_attention_layernorm(x))
        x = block.input_layernorm(x + self.attention(number, x, rotary, attend))
        return block.post_attention_layernorm(x + self.feed_forward(x))

    def attention(
        self, number: int, x: torch.Tensor, rotary: tuple[torch.Tensor, ...] | None, attend: _Attend
    ) -> torch.Tensor:
        mixed = self.qkv(x).unflatten(-1, (-1, self.head_width))
        turned, values = mixed.split((self.heads + self.kv_heads, self.kv_heads), dim=-2)
        if self.scales is not None:
            turned = F.rms_norm(turned, (self.head_width,), eps=self.eps) * self.scales.to(turned.dtype)
        if rotary is not None:
            turned = rotate(turned, *rotary)
        queries, keys = turned.split((self.heads, self.kv_heads), dim=-2)
        return self.o(attend(number, queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)))

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.gated:
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class _Packed:
    """Linear layers side by side, stored input-major: what a product with few rows reads fastest on a CPU."""

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self.weight = _pack([layer.weight for layer in layers], dtype)
        biases: list[torch.Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases).to(dtype) if biases else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


def _pack(weights: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The matrices stacked, ``[sum of outputs, inputs]`` to the eye, transposed and padded in memory."""
    outputs, inputs = sum(len(weight) for weight in weights), weights[0].shape[1]
    packed = weights[0].new_empty(inputs, outputs + _STRIDE_PADDING, dtype=dtype)[:, :outputs].t()
    return packed.copy_(torch.cat(list(weights)))


def _last(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The last real token's ``[R, D]`` of right-padded ``[R, T, D]``."""
    return x[torch.arange(len(x), device=x.device), lengths - 1]


_PLAIN = {GPT, Trunk, Block, Attention, FeedForward, RMSNorm, nn.Linear, nn.Embedding, nn.LayerNorm, nn.ModuleList}


def can_pack(network: nn.Module) -> bool:
    """Whether the network computes what its weights say: no adapters, hooks, parametrisations or sharded weights."""
    return all(
        type(module) in _PLAIN and not module._forward_hooks and not module._forward_pre_hooks
        for module in network.modules()
    ) and all(type(parameter) is nn.Parameter for parameter in network.parameters())
