"""A decoder that rows join and leave while others go on: what serving needs.

What a row computes does not depend on the others, to the bit, on a CPU whose matrix products give a row the same
numbers beside one other row as beside fifty (a test looks):

- attention looks at a multiple of 32 slots, so that the sums over them are split alike; prompts are filled up to one,
  and those that fill up to the same are read together;
- no product has fewer than two rows, because one with a single row takes another path.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from align.generation.decoder import PackedDecoder
from align.generation.packed_blocks import can_pack
from align.model.gpt import GPT

_MIN_ROWS = 2

_SLOT_STEP = 32


class OpenDecoder(PackedDecoder):
    """Rows being continued, in memory for a fixed number of them.

    Attributes:
        rows: how many there are now; they are numbered from 0 without holes.
        max_rows: how many there can be.
    """

    def __init__(self, network: GPT, *, max_rows: int, slots: int) -> None:
        """Make room for rows to come.

        Args:
            network: without hooks; adapters are merged into the copy that is packed.
            max_rows: how many rows at once.
            slots: tokens of a row, prompt and response.

        Raises:
            ValueError: the network computes more than its weights say, or ``slots`` is beyond its context.
        """
        if not can_pack(network):
            raise ValueError("a network with hooks or sharded weights cannot be served; export it")
        super().__init__(network, [], slots=slots, rows=max(max_rows, _MIN_ROWS))
        self.rows, self.max_rows = 0, max_rows
        self._arranged = False
        self._make_room()

    def join(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read prompts into new rows, the last ones.

        Args:
            prompts: at least one, of at least one token each; those of like length are read together if neighbours.

        Returns:
            ``[prompts, V]``, the logits after the last token of each.

        Raises:
            ValueError: there are not as many rows left.
        """
        first = self.rows
        if first + len(prompts) > self.max_rows:
            raise ValueError(f"{len(prompts)} prompts for {self.max_rows - first} rows that are left")
        self.lengths[first:] = [len(prompt) for prompt in prompts]
        self.rows += len(prompts)
        self._make_room()
        last, start = [], 0
        for _, alike in itertools.groupby(prompts, lambda prompt: self._filled_up(len(prompt))):
            group = list(alike)
            last.append(self._read(group, first + start, whole=True))
            start += len(group)
        hidden = torch.cat(last)
        return F.linear(hidden.expand(max(len(hidden), _MIN_ROWS), -1), self.output)[: len(prompts)]

    def leave(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        self.rows -= 1
        if row < self.rows:
            self.cache.move(self.rows, row, self.lengths[self.rows])
            self.lengths[row] = self.lengths[self.rows]
        del self.lengths[self.rows :]
        self._arranged = False

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """See ``Decoder.step``."""
        if not self._arranged:  # once, however many rows came and went
            self._make_room()
            self._view()
            self._arranged = True
        return super().step(F.pad(ids, (0, len(self.lengths) - self.rows)))[: self.rows]

    def _make_room(self) -> None:
        """Fit positions and cache to the rows, and to rows that nobody reads up to the least number."""
        self.lengths += [0] * (_MIN_ROWS - len(self.lengths))
        self.positions = torch.tensor(self.lengths, device=self.positions.device)
        self.cache.use(len(self.lengths))
        self._arranged = False

    def _live_slots(self) -> list[int]:
        longest = [max(self.lengths[start : start + self.group]) for start in range(0, len(self.lengths), self.group)]
        return [self._filled_up(length + 1) for length in longest]

    def _filled_up(self, slots: int) -> int:
        return min(-(-slots // _SLOT_STEP) * _SLOT_STEP, self.cache.length)

    def _padded(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        width = self._filled_up(len(prompts[0]))
        return torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in prompts], device=self.positions.device)
