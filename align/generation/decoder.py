"""Prefill of prompts, then decoding one token per row and step.

``Decoder`` uses the network's own forward pass, ``PackedDecoder`` packed weights, and ``StaticDecoder`` fixed shapes,
which a CUDA graph can replay.

Legend: R rows, T tokens, S slots of the cache, H query heads, K key/value heads, E width of one head, D width,
V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F

from align.generation.packed_blocks import Attend, PackedBlock, normalise, pack
from align.model.gpt import GPT
from align.model.kv_cache import KVCache
from align.model.layers import Block, attend_fast

# Rows that attend together, over the slots of the longest: larger groups read more unused slots, smaller ones need more
# calls. 16 was the fastest of 4..64 on a CPU with prompts of 16..96 tokens.
_GROUP = 16

# Padded tokens per prefill batch: on a CPU enough for efficient products, yet within its caches; elsewhere the number
# of kernel launches matters, whatever their size.
_PREFILL_TOKENS = 512

_PREFILL_TOKENS_ELSEWHERE = 16384


class Decoder:
    """Decodes with the network's own forward pass: the reference, and for networks that can't be packed.

    Attributes:
        cache: keys and values of every processed token.
        positions: ``[R]`` int64, the slot of each row's next token.
        shrinks: whether finished rows can be dropped with ``keep``.
        check_every: steps between checks whether all rows are finished.
    """

    shrinks = True
    check_every = 1

    def __init__(self, network: GPT, prompts: Sequence[Sequence[int]], *, slots: int) -> None:
        """Allocate the cache.

        Args:
            network: in evaluation mode.
            prompts: longest first, at least one token each.
            slots: per row, tokens.
        """
        weight = network.output_weight
        device = weight.device
        autocast = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
        self.network, self.prompts = network, prompts
        kv_heads = cast(Block, network.model.layers[0]).self_attn.kv_heads
        self.cache = KVCache(network.config, len(prompts), slots, device, self.dtype, kv_heads=kv_heads)
        self.positions = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64, device=device)

    def read_prompts(self) -> torch.Tensor:
        """Prefill the prompts; returns the logits ``[R, V]`` after the last token of each."""
        ids = self._padded(self.prompts)
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.network.logits(
            _last(self.network.hidden(ids, positions=positions, cache=self.cache), self.positions)
        )

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Append one token per row, ``ids`` ``[R]`` int64; returns the logits ``[R, V]`` after them."""
        hidden = self.network.hidden(ids[:, None], positions=self.positions[:, None], cache=self.cache)
        self._advance()
        return self.network.logits(hidden[:, 0])

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only these rows: ``[R']`` int64, ascending."""
        self.cache.keep(rows, int(self.positions.max()))
        self.positions = self.positions[rows]

    def _advance(self) -> None:
        # A finished row that is not dropped yet may reach its last slot and stays there.
        self.positions = (self.positions + 1).clamp(max=self.cache.length - 1)

    def _padded(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        width = len(prompts[0])
        return torch.tensor(
            [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=self.positions.device
        )


class PackedDecoder(Decoder):
    """A faster equivalent: matrices packed for products with few rows, no module calls, attention over used slots only.

    Takes a second copy of the matrices. Only for networks for which ``can_pack`` is true.
    """

    def __init__(self, network: GPT, prompts: Sequence[Sequence[int]], *, slots: int) -> None:
        """Allocate the cache and pack the weights."""
        super().__init__(network, prompts, slots=slots)
        self.layers = [
            PackedBlock(layer, network.config, self.dtype) for layer in cast(Sequence[Block], network.model.layers)
        ]
        self.output = pack([network.output_weight], self.dtype)
        tables = network.model.rotary(torch.arange(slots, device=self.positions.device))
        self.rotations = None if tables is None else torch.complex(*tables)[:, None]
        self.lengths = [len(prompt) for prompt in prompts]
        self._view()

    def read_prompts(self) -> torch.Tensor:
        """See ``Decoder.read_prompts``; rows of similar length are processed together, which limits padding."""
        return self._read_all(self.prompts, 0)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """See ``Decoder.step``."""
        config = self.network.config
        kv_heads, head_width = config.resolved_kv_heads, config.resolved_head_width
        live = self._live_slots()
        hidden_slots = torch.arange(max(live), device=ids.device) > self.positions[:, None]
        mask = torch.zeros_like(hidden_slots, dtype=self.dtype).masked_fill(hidden_slots, -torch.inf)[:, None, None]
        masks = [rows[..., :slots] for rows, slots in zip(mask.split(self.group), live, strict=True)]
        # Where the new vectors go in the cache, seen as one list of vectors.
        heads = torch.arange(len(ids) * kv_heads, device=ids.device)
        flat_slots = heads * self.cache.length + self.positions.repeat_interleave(kv_heads)

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            for kept, new in ((self.cache.keys, keys), (self.cache.values, values)):
                kept[layer].view(-1, head_width).index_copy_(0, flat_slots, new.reshape(-1, head_width).to(self.dtype))
            # The H / K query heads of a key head see the same slots, so the kernel treats them as queries of one head.
            grouped = queries.view(len(ids), kv_heads, -1, head_width).split(self.group)
            mixed = [
                F.scaled_dot_product_attention(
                    rows, kept_keys[:, :, :slots], kept_values[:, :, :slots], attn_mask=visible
                )
                for rows, (kept_keys, kept_values), slots, visible in zip(
                    grouped, self.views[layer], live, masks, strict=True
                )
            ]
            return torch.cat(mixed).view(len(ids), 1, -1)

        hidden = self._run(ids[:, None], self.positions[:, None], attend)
        self._advance()
        self.lengths = [min(length + 1, self.cache.length - 1) for length in self.lengths]
        return F.linear(hidden[:, 0], self.output)

    def keep(self, rows: torch.Tensor) -> None:
        """See ``Decoder.keep``."""
        super().keep(rows)
        self.lengths = [self.lengths[row] for row in rows.tolist()]
        self._view()

    def _live_slots(self) -> list[int]:
        """Slots that the longest (first) row of each group sees, including its new token."""
        return [self.lengths[start] + 1 for start in range(0, len(self.lengths), self.group)]

    def _view(self) -> None:
        """Split each layer's keys and values into groups of rows, once for all steps."""
        self.group = _GROUP if self.positions.device.type == "cpu" else max(1, len(self.lengths))
        self.views = [
            list(zip(keys.split(self.group), values.split(self.group), strict=True))
            for keys, values in zip(self.cache.keys, self.cache.values, strict=True)
        ]

    def _read_all(self, prompts: Sequence[Sequence[int]], first: int) -> torch.Tensor:
        """Prefill prompts, longest first, into the rows from ``first`` on; returns the logits ``[prompts, V]``."""
        max_tokens = _PREFILL_TOKENS if self.positions.device.type == "cpu" else _PREFILL_TOKENS_ELSEWHERE
        chunks = _prefill_chunks([len(prompt) for prompt in prompts], max_tokens)
        last = [self._read(prompts[start:stop], first + start) for start, stop in chunks]
        return F.linear(torch.cat(last), self.output)

    def _read(self, prompts: Sequence[Sequence[int]], start: int) -> torch.Tensor:
        """Prefill prompts into the rows from ``start`` on; returns ``[prompts, D]`` after the last token of each.

        Args:
            prompts: longest first.
            start: row of the first.
        """
        ids = self._padded(prompts)
        width, stop = ids.shape[1], start + len(prompts)

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            queries, keys, values = (heads.transpose(1, 2) for heads in (queries, keys, values))
            self.cache.keys[layer, start:stop, :, :width] = keys
            self.cache.values[layer, start:stop, :, :width] = values
            return attend_fast(queries, keys, values, mask=None, dropout=0.0).transpose(1, 2).flatten(-2)

        def only_last(x: torch.Tensor) -> torch.Tensor:
            return _last(x, self.positions[start:stop])[:, None]

        positions = torch.arange(width, device=ids.device)
        return self._run(ids, positions, attend, only_last)[:, 0]

    def _run(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        attend: Attend,
        only: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Run embeddings, blocks and final norm.

        Args:
            ids: ``[R, T]``.
            positions: ``[T]`` or ``[R, T]``.
            attend: attention over the cache.
            only: selects the tokens whose hidden state is needed; None means all.

        Returns:
            ``[R, T', D]``.
        """
        trunk = self.network.model
        rotations = None if self.rotations is None else self.rotations[positions]
        x = trunk.embed(ids, positions)
        *others, last = self.layers
        for layer in others:
            x = layer(x, rotations=rotations, attend=attend)
        x = last(x, rotations=rotations, attend=attend, only=only)
        return x if trunk.norm is None else normalise(trunk.norm, x)


def _prefill_chunks(lengths: Sequence[int], max_tokens: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(lengths):
        stop = min(start + max(1, max_tokens // lengths[start]), len(lengths))
        yield start, stop
        start = stop


def _last(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The last real token's ``[R, D]`` of right-padded ``[R, T, D]``."""
    return x[torch.arange(len(x), device=x.device), lengths - 1]


class StaticDecoder(PackedDecoder):
    """A ``PackedDecoder`` whose step is one CUDA graph; on other devices it runs the same operations one by one.

    On a GPU, a small network's step is hundreds of kernels that take less time than their launch; a graph has one
    launch. In exchange every step attends to all slots, finished rows stay, and whether all are finished is checked
    only every few steps, because the check waits for the device.
    """

    shrinks = False
    check_every = 16

    def __init__(self, network: GPT, prompts: Sequence[Sequence[int]], *, slots: int) -> None:
        """Allocate the cache, pack the weights, and allocate the graph's inputs."""
        super().__init__(network, prompts, slots=slots)
        self._ids = torch.zeros_like(self.positions)
        self._slots = torch.arange(slots, device=self.positions.device)
        self._logits = torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """See ``Decoder.step``; the next step overwrites the returned tensor."""
        self._ids.copy_(ids)
        if self._ids.device.type != "cuda":
            return self._step()
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        self._graph.replay()
        return self._logits

    def keep(self, rows: torch.Tensor) -> None:
        """Not supported: shapes are fixed.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a StaticDecoder has fixed shapes and can't drop rows")

    def _step(self) -> torch.Tensor:
        """Process ``_ids`` at ``positions`` and advance these, in place; returns the logits ``[R, V]``."""
        rows, kv_heads = len(self._ids), self.network.config.resolved_kv_heads
        head_width = self.network.config.resolved_head_width
        hidden_slots = self._slots > self.positions[:, None]
        mask = torch.zeros_like(hidden_slots, dtype=self.dtype).masked_fill(hidden_slots, -torch.inf)[:, None, None]
        heads = torch.arange(rows * kv_heads, device=self._ids.device)
        flat_slots = heads * self.cache.length + self.positions[:, None].expand(-1, kv_heads).flatten()

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            for kept, new in ((self.cache.keys, keys), (self.cache.values, values)):
                kept[layer].view(-1, head_width).index_copy_(0, flat_slots, new.reshape(-1, head_width).to(self.dtype))
            # The H / K query heads of a key head see the same slots, so the kernel treats them as queries of one head.
            grouped = queries.view(rows, kv_heads, -1, head_width)
            mixed = F.scaled_dot_product_attention(
                grouped, self.cache.keys[layer], self.cache.values[layer], attn_mask=mask
            )
            return mixed.view(rows, 1, -1)

        hidden = self._run(self._ids[:, None], self.positions[:, None], attend)
        self.positions.add_(1).clamp_(max=self.cache.length - 1)
        return F.linear(hidden[:, 0], self.output)

    def _capture(self) -> None:
        """Capture a step. Libraries need warm-up runs before; the first replay overwrites what those write."""
        before = self.positions.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._step()
                self.positions.copy_(before)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._step()
        self._graph = graph
