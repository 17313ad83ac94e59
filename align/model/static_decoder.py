"""Decoding with the same shapes in every step and nothing read back: what a CUDA graph can replay.

Legend: R rows, S slots of the cache, K key/value heads, E width of one head, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from align.model.decoder import PackedDecoder
from align.model.gpt import GPT


class StaticDecoder(PackedDecoder):
    """``PackedDecoder`` whose step is one recorded CUDA graph; elsewhere the same operations, one by one.

    A small network's step on a GPU is hundreds of kernels that each take less time than their launch; replayed, they
    cost one launch. In return every step looks at all slots, finished rows stay, and whether all are finished is asked
    only every few steps, because asking waits for the device.
    """

    shrinks = False
    check_every = 16

    def __init__(self, network: GPT, prompts: Sequence[Sequence[int]], *, slots: int, rows: int | None = None) -> None:
        """As ``PackedDecoder``."""
        super().__init__(network, prompts, slots=slots, rows=rows)
        self._ids = torch.zeros_like(self.positions)
        self._slots = torch.arange(slots, device=self.positions.device)
        self._logits = torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """See ``Decoder.step``; the next step overwrites what it returns."""
        self._ids.copy_(ids)
        if self._ids.device.type != "cuda":
            return self._step()
        if self._graph is None:
            self._record()
        assert self._graph is not None
        self._graph.replay()
        return self._logits

    def keep(self, rows: torch.Tensor) -> None:
        """Rows stay.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a StaticDecoder keeps all its rows")

    def _step(self) -> torch.Tensor:
        """Read ``_ids`` at ``positions`` and move these on, in place; returns the logits ``[R, V]``."""
        rows, kv_heads = len(self._ids), self.network.config.resolved_kv_heads
        head_width = self.network.config.resolved_head_width
        unseen = self._slots > self.positions[:, None]
        mask = torch.zeros_like(unseen, dtype=self.dtype).masked_fill(unseen, -torch.inf)[:, None, None]
        heads = torch.arange(rows * kv_heads, device=self._ids.device)
        places = heads * self.cache.length + self.positions[:, None].expand(-1, kv_heads).flatten()

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            for kept, new in ((self.cache.keys, keys), (self.cache.values, values)):
                kept[layer].view(-1, head_width).index_copy_(0, places, new.reshape(-1, head_width).to(self.dtype))
            # The query heads of one key head see the same slots: to the kernel they are queries of one head.
            grouped = queries.view(rows, kv_heads, -1, head_width)
            mixed = F.scaled_dot_product_attention(
                grouped, self.cache.keys[layer], self.cache.values[layer], attn_mask=mask
            )
            return mixed.view(rows, 1, -1)

        hidden = self._run(self._ids[:, None], self.positions[:, None], attend)
        self.positions.add_(1).clamp_(max=self.cache.length - 1)
        return F.linear(hidden[:, 0], self.output)

    def _record(self) -> None:
        """Record a step. Libraries want to run once before; those runs write what the first replay writes again."""
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
