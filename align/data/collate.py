"""From row numbers to a ``TokenBatch``, with one gather over the memory-mapped corpus.

Legend: B rows of a batch, T tokens of a row.
"""

from dataclasses import dataclass

import numpy as np
import torch

from align.batches import TokenBatch
from align.data.corpus import Corpus
from align.data.rows import Rows, ranges


@dataclass(frozen=True)
class RowDataset:
    """What a loader draws batches from: ``dataset[row numbers]`` is a ``TokenBatch``."""

    corpus: Corpus
    """Tokens"""
    rows: Rows
    """Their places"""
    token_bytes: np.ndarray
    """``[vocabulary]`` int32, UTF-8 bytes of each token"""
    pad_id: int
    """Fills what no token fills"""
    width: int
    """Longest row, tokens"""
    fixed_width: bool
    """Every batch is ``width`` wide; otherwise as wide as its longest row, in steps that let the network read a
    multiple of 8 tokens"""
    block_diagonal: bool
    """Positions and documents are given, so that attention stays inside a piece"""

    def __getitem__(self, chosen: np.ndarray) -> TokenBatch:
        """Lay out rows.

        A piece's first token is no target: what it would be predicted from stands in another document or row.

        Args:
            chosen: ``[B]`` row numbers; -1 gives a row of nothing but padding.

        Returns:
            TokenBatch: ``[B, T]``.
        """
        first = np.where(chosen >= 0, self.rows.offsets[chosen], 0)
        count = np.where(chosen >= 0, self.rows.offsets[chosen + 1] - first, 0)
        pieces = ranges(first, count)
        starts, lengths = self.rows.starts[pieces], self.rows.lengths[pieces]
        number = ranges(np.zeros_like(count), count)  # of the piece within its row
        row = np.repeat(np.arange(len(chosen)), count)
        filled = np.bincount(row, lengths, len(chosen)).astype(np.int64)
        width = self.width if self.fixed_width else self.padded_width(int(filled.max()))
        # Pieces of a row follow each other, so a piece begins where all earlier ones end, less the rows before its own.
        column = np.cumsum(lengths) - lengths - (np.cumsum(filled) - filled)[row]

        source = ranges(starts, lengths)
        target = ranges(row * width + column, lengths)
        within = ranges(np.zeros_like(lengths), lengths)
        counts = within > 0
        if self.corpus.counted is not None:
            counts &= self.corpus.counted[source]
        shape = (len(chosen), width)
        ids = _scatter(shape, target, self.corpus.ids[source], fill=self.pad_id)
        mask = _scatter(shape, target, counts, fill=False)
        num_bytes = (self.token_bytes[ids] * mask).sum(axis=1, dtype=np.int64)
        return TokenBatch(
            ids=torch.from_numpy(ids),
            mask=torch.from_numpy(mask),
            positions=torch.from_numpy(_scatter(shape, target, within, fill=0)) if self.block_diagonal else None,
            documents=torch.from_numpy(_scatter(shape, target, np.repeat(number, lengths), fill=-1))
            if self.block_diagonal
            else None,
            num_bytes=torch.from_numpy(num_bytes),
        )

    def padded_width(self, longest: int) -> int:
        """How wide a batch is whose longest row has ``longest`` tokens.

        The network reads all but the last token: 8 k + 1 tokens, but no more than the widest row.
        """
        return min(max(1, -(-(longest - 1) // 8)) * 8 + 1, self.width)


def _scatter(shape: tuple[int, int], target: np.ndarray, values: np.ndarray, *, fill: int) -> np.ndarray:
    """A bool or int64 array of ``fill`` with ``values`` at the flat places ``target``."""
    out = np.full(shape, fill, dtype=bool if values.dtype == bool else np.int64)
    out.reshape(-1)[target] = values
    return out
