"""Reading prompts and then one token per row and step: plainly through the network, or with its weights packed.

Legend: R rows, T tokens, S slots of the cache, H query heads, K key/value heads, E width of one head, D width,
V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F

from align.model.attention import attend_fast
from align.model.block import Block
from align.model.cache import KVCache
from align.model.gpt import GPT
from align.model.packed import Attend, PackedBlock, pack

# Rows that attend together, over the slots of the longest of them: fewer read more memory for nothing (rows of one
# batch differ in length), more cost calls. 16 was the best of 4..64 on a CPU with prompts of 16..96 tokens.
_GROUP = 16
# Padded tokens of the prompts that are read together: large enough for full-speed products, small enough for caches.
_PREFILL_TOKENS = 1024


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
            PackedBlock(layer, network.config, self.dtype) for layer in cast(Sequence[Block], network.model.layers)
        ]
        self.output = pack([network.output_weight], self.dtype)
        tables = network.model.rotary(torch.arange(slots, device=self.positions.device))
        self.turns = None if tables is None else torch.complex(*tables)[:, None]
        self.lengths = [len(prompt) for prompt in prompts]

    def read_prompts(self) -> torch.Tensor:
        """See ``Decoder.read_prompts``; rows of like length are read together, so little is padding."""
        last = [self._read(start, stop) for start, stop in self._prefill_chunks()]
        return F.linear(torch.cat(last), self.output)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """See ``Decoder.step``."""
        config = self.network.config
        kv_heads, head_width = config.resolved_kv_heads, config.resolved_head_width
        hidden_slots = torch.arange(self.lengths[0] + 1, device=ids.device) > self.positions[:, None]
        mask = torch.zeros_like(hidden_slots, dtype=self.dtype).masked_fill(hidden_slots, -torch.inf)[:, None, None]
        # The cache as one column of vectors, and where in it each row's new ones go.
        heads = torch.arange(len(ids) * kv_heads, device=ids.device)
        places = heads * self.cache.length + self.positions.repeat_interleave(kv_heads)

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            kept_keys, kept_values = self.cache.keys[layer], self.cache.values[layer]
            kept_keys.view(-1, head_width).index_copy_(0, places, keys.reshape(-1, head_width).to(self.dtype))
            kept_values.view(-1, head_width).index_copy_(0, places, values.reshape(-1, head_width).to(self.dtype))
            # The H / K query heads of one key head see the same slots: to the kernel they are queries of one head.
            queries = queries.unflatten(1, (kv_heads, -1)).squeeze(3)
            mixed = [
                F.scaled_dot_product_attention(
                    queries[rows],
                    kept_keys[rows, :, :live],
                    kept_values[rows, :, :live],
                    attn_mask=mask[rows, ..., :live],
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
        self, ids: torch.Tensor, positions: torch.Tensor, attend: Attend, lengths: torch.Tensor | None = None
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
        turns = None if self.turns is None else self.turns[positions]
        x = trunk.embed(ids, positions)
        for number, layer in enumerate(self.layers):
            x = layer(number, x, turns, attend)
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


def _last(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The last real token's ``[R, D]`` of right-padded ``[R, T, D]``."""
    return x[torch.arange(len(x), device=x.device), lengths - 1]
