"""What TextData and ChatData share: documents laid out in rows of tokens, each token a target or not."""

from typing import Any, NamedTuple

import numpy as np

from align.data.collate import RowDataset
from align.data.module import TokenData
from align.data.rows import Rows


class Layout(NamedTuple):
    """How documents stand in rows.

    Attributes:
        rows: the rows.
        fixed_width: every batch is ``context + 1`` tokens wide; otherwise batches are of rows of similar length.
        block_diagonal: attention stays inside a document.
    """

    rows: Rows
    fixed_width: bool
    block_diagonal: bool


class RowData(TokenData):
    """Files or Hub datasets to ``TokenBatch``: a record is a document, documents are laid out in rows."""

    def _lay_out(self, bounds: np.ndarray) -> Layout:
        """Rows of the documents between ``bounds``."""
        raise NotImplementedError

    def _dataset(self, split: str) -> RowDataset:
        layout = self._lay_out(self._bounds(split))
        return RowDataset(
            corpus=self._corpus(split),
            rows=layout.rows,
            token_bytes=self.tokenizer.token_bytes,
            pad_id=self._pad_id(),
            width=self.context + 1,
            fixed_width=layout.fixed_width,
            block_diagonal=layout.block_diagonal,
        )

    def _bounds(self, split: str) -> np.ndarray:
        """Where a split's documents begin in its corpus, and the end."""
        corpus = self._corpus(split)
        offsets = np.asarray(corpus.offsets)
        if len(offsets) > 2 or not self.val_fraction or split == "test":
            records = self._records(split)
            return offsets[records.start : records.stop + 1]
        # Bytes, not tokens, decide, so that the cut falls at the same text whatever the tokenizer.
        filled = np.cumsum(self.tokenizer.token_bytes[corpus.ids])
        cut = int(np.searchsorted(filled, int(filled[-1] * (1 - self.val_fraction)))) + 1
        return np.array([0, cut] if split == "train" else [cut, offsets[-1]])

    def _counts(self, split: str) -> dict[str, Any]:
        dataset, bounds = self._datasets[split], self._bounds(split)
        return {
            "documents": len(bounds) - 1,
            "tokens": int(bounds[-1] - bounds[0]),
            "counted_tokens": _counted(dataset),
            "rows": len(dataset),
        }


def _counted(dataset: RowDataset) -> int:
    """Targets of one pass."""
    if dataset.corpus.counted is None:
        return int((dataset.rows.lengths - 1).sum())
    ends = np.cumsum(dataset.corpus.counted)
    first, last = dataset.rows.starts, dataset.rows.starts + dataset.rows.lengths - 1
    return int((ends[last] - ends[first]).sum())
