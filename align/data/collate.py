"""From row numbers to a ``TokenBatch``, with one gather over the memory-mapped corpus.

Legend: B rows of a batch, R rows of a split, T tokens of a row.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from align.batches import TokenBatch
from align.data.corpus import Corpus
from align.data.rows import Rows, ranges

Batch = TypeVar("Batch", covariant=True)


class BatchDataset(Protocol[Batch]):
    """What loaders draw batches from and the account counts."""

    @property
    def corpus(self) -> Corpus:
        """Tokens."""
        ...

    def __len__(self) -> int:
        """R."""
        ...

    def __getitem__(self, chosen: np.ndarray) -> Batch:
        """The batch of rows ``[B]``; -1 gives a row of nothing but padding."""
        ...

    @property
    def sort_widths(self) -> np.ndarray | None:
        """``[R]`` tokens of each row, by which rows share batches; None: lengths don't matter."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the rows, beside the corpus and the context."""
        ...

    def padding_share(self, table: np.ndarray) -> float:
        """How much of the batches ``[batches, B]`` is padding, without the rows that only fill up the last one."""
        ...


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

    def __len__(self) -> int:
        """R."""
        return len(self.rows)

    @property
    def sort_widths(self) -> np.ndarray | None:
        """``[R]`` tokens of each row; None where every batch is as wide."""
        return None if self.fixed_width else self.rows.widths

    @property
    def identity(self) -> dict[str, Any]:
        """How many tokens stand in the rows, and whether they see other documents'."""
        return {"tokens": int(self.rows.lengths.sum()), "block_diagonal": self.block_diagonal}

    def padding_share(self, table: np.ndarray) -> float:
        """How much of the batches ``[batches, B]`` is padding."""
        return padding_share(self.rows.widths, self._width(batch_widths(self.rows.widths, table)), table)

    def _width(self, longest: np.ndarray) -> np.ndarray:
        return np.full_like(longest, self.width) if self.fixed_width else padded_width(longest, self.width)

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
        width = int(self._width(filled.max()))
        # Pieces of a row follow each other, so a piece begins where all earlier ones end, less the rows before its own.
        column = np.cumsum(lengths) - lengths - (np.cumsum(filled) - filled)[row]

        source = ranges(starts, lengths)
        target = ranges(row * width + column, lengths)
        within = ranges(np.zeros_like(lengths), lengths)
        counts = within > 0
        if self.corpus.counted is not None:
            counts &= self.corpus.counted[source]
        shape = (len(chosen), width)
        ids = scatter(shape, target, self.corpus.ids[source], fill=self.pad_id)
        mask = scatter(shape, target, counts, fill=False)
        num_bytes = (self.token_bytes[ids] * mask).sum(axis=1, dtype=np.int64)
        return TokenBatch(
            ids=torch.from_numpy(ids),
            mask=torch.from_numpy(mask),
            positions=torch.from_numpy(scatter(shape, target, within, fill=0)) if self.block_diagonal else None,
            documents=torch.from_numpy(scatter(shape, target, np.repeat(number, lengths), fill=-1))
            if self.block_diagonal
            else None,
            num_bytes=torch.from_numpy(num_bytes),
        )


def padded_width(longest: np.ndarray, most: int) -> np.ndarray:
    """How wide a batch is.

    The network reads all but the last token: 8 k + 1 tokens, but no more than the widest row.

    Args:
        longest: tokens of the batch's longest row, of any shape.
        most: tokens of the widest row there may be.
    """
    return np.minimum(np.maximum(1, -(-(longest - 1) // 8)) * 8 + 1, most)


def batch_widths(widths: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Tokens of the longest row of each batch.

    Args:
        widths: ``[R]`` tokens of each row.
        table: ``[batches, B]`` row numbers, -1 for padding.
    """
    return np.where(table >= 0, widths[table], 0).max(axis=1)


def padding_share(tokens: np.ndarray, widths: np.ndarray, table: np.ndarray) -> float:
    """How much of some batches is padding, without the rows that only fill up the last one.

    Args:
        tokens: ``[R]`` tokens of each row.
        widths: ``[batches]`` places of a row of each batch.
        table: ``[batches, B]`` row numbers, -1 for padding.
    """
    used = table >= 0
    return 1 - float(tokens[table][used].sum() / (widths * used.sum(axis=1)).sum())


def scatter(shape: tuple[int, int], target: np.ndarray, values: np.ndarray, *, fill: int) -> np.ndarray:
    """A bool or int64 array of ``fill`` with ``values`` at the flat places ``target``."""
    out = np.full(shape, fill, dtype=bool if values.dtype == bool else np.int64)
    out.reshape(-1)[target] = values
    return out
