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

from align.generation.packed_blocks import Attend, PackedBlock, normalise, pack, rotations_of
from align.model.attention import attend_fast, narrow, soft_capped
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.kv_cache import KVCache
from align.model.layers import Block

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
        self.rotations = rotations_of(network.model, slots, self.positions.device)
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
        full, windowed = self._masks(torch.arange(max(live), device=ids.device))
        masks, window_masks = (
            [rows[..., :slots] for rows, slots in zip(mask.split(self.group), live, strict=True)]
            for mask in (full, windowed)
        )
        # Where the new vectors go in the cache, seen as one list of vectors.
        heads = torch.arange(len(ids) * kv_heads, device=ids.device)
        flat_slots = heads * self.cache.length + self.positions.repeat_interleave(kv_heads)

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            for kept, new in ((self.cache.keys, keys), (self.cache.values, values)):
                kept[layer].view(-1, head_width).index_copy_(0, flat_slots, new.reshape(-1, head_width).to(self.dtype))
            # The H / K query heads of a key head see the same slots, so the kernel treats them as queries of one head.
            grouped = queries.view(len(ids), kv_heads, -1, head_width).split(self.group)
            visible = masks if config.window_of(layer) is None else window_masks
            mixed = [
                _attend_slots(rows, kept_keys[:, :, :slots], kept_values[:, :, :slots], mask, config)
                for rows, (kept_keys, kept_values), slots, mask in zip(
                    grouped, self.views[layer], live, visible, strict=True
                )
            ]
            return torch.cat(mixed).view(len(ids), 1, -1)

        hidden = self._run(ids[:, None], self.positions[:, None], attend)
        self._advance()
        self.lengths = [min(length + 1, self.cache.length - 1) for length in self.lengths]
        return self._to_logits(hidden[:, 0])

    def keep(self, rows: torch.Tensor) -> None:
        """See ``Decoder.keep``."""
        super().keep(rows)
        self.lengths = [self.lengths[row] for row in rows.tolist()]
        self._view()

    def _to_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return soft_capped(F.linear(hidden, self.output), self.network.softcap)

    def _masks(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Additive masks ``[R, 1, 1, S]`` of ``slots`` ``[S]``, without a window and with it."""
        window, positions = self.network.config.window, self.positions[:, None]
        hidden = slots > positions
        full = self._additive(hidden)
        return full, full if window is None else self._additive(hidden | (slots <= positions - window))

    def _additive(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden, dtype=self.dtype).masked_fill(hidden, -torch.inf)[:, None, None]

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
        return self._to_logits(torch.cat(last))

    def _read(self, prompts: Sequence[Sequence[int]], start: int) -> torch.Tensor:
        """Prefill prompts into the rows from ``start`` on; returns ``[prompts, D]`` after the last token of each.

        Args:
            prompts: longest first.
            start: row of the first.
        """
        config, ids = self.network.config, self._padded(prompts)
        width, stop = ids.shape[1], start + len(prompts)
        positions = torch.arange(width, device=ids.device)
        window_mask = None if config.window is None else narrow(None, config.window, positions, width)

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            queries, keys, values = (heads.transpose(1, 2) for heads in (queries, keys, values))
            self.cache.keys[layer, start:stop, :, :width] = keys
            self.cache.values[layer, start:stop, :, :width] = values
            mixed = attend_fast(
                queries,
                keys,
                values,
                mask=None if config.window_of(layer) is None else window_mask,
                dropout=0.0,
                scale=config.attention_scale,
                softcap=config.attention_softcap,
            )
            return mixed.transpose(1, 2).flatten(-2)

        def only_last(x: torch.Tensor) -> torch.Tensor:
            return _last(x, self.positions[start:stop])[:, None]

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
        rotations = None if self.rotations is None else self.rotations.at(positions)
        x = trunk.embed(ids, positions)
        *others, last = self.layers
        for layer in others:
            x = layer(x, rotations=rotations, attend=attend)
        x = last(x, rotations=rotations, attend=attend, only=only)
        return x if trunk.norm is None else normalise(trunk.norm, x)


def _attend_slots(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, config: GPTConfig
) -> torch.Tensor:
    """Attention ``[R, K, G, E]`` of G queries per key head over slots; ``mask`` ``[R, 1, 1, S]`` is additive."""
    scale, softcap = config.attention_scale, config.attention_softcap
    if softcap is None:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    scores = queries @ keys.transpose(-2, -1) * (queries.shape[-1] ** -0.5 if scale is None else scale)
    scores = soft_capped(scores, softcap) + mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights.to(values.dtype) @ values


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
        config, rows = self.network.config, len(self._ids)
        kv_heads, head_width = config.resolved_kv_heads, config.resolved_head_width
        mask, window_mask = self._masks(self._slots)
        heads = torch.arange(rows * kv_heads, device=self._ids.device)
        flat_slots = heads * self.cache.length + self.positions[:, None].expand(-1, kv_heads).flatten()

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            for kept, new in ((self.cache.keys, keys), (self.cache.values, values)):
                kept[layer].view(-1, head_width).index_copy_(0, flat_slots, new.reshape(-1, head_width).to(self.dtype))
            # The H / K query heads of a key head see the same slots, so the kernel treats them as queries of one head.
            grouped = queries.view(rows, kv_heads, -1, head_width)
            visible = mask if config.window_of(layer) is None else window_mask
            mixed = _attend_slots(grouped, self.cache.keys[layer], self.cache.values[layer], visible, config)
            return mixed.view(rows, 1, -1)

        hidden = self._run(self._ids[:, None], self.positions[:, None], attend)
        self.positions.add_(1).clamp_(max=self.cache.length - 1)
        return self._to_logits(hidden[:, 0])

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
