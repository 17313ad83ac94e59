"""Packing: which tokens of the corpus are in which row.

A row is a list of spans, and a span is consecutive tokens of the corpus. A row of W tokens makes W - 1 predictions, so
a document that is split at the end of a row continues in the next row with its last token repeated: a target in the
first row, an input in the second.

Legend: S spans, R rows, W width of a row, tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Rows as spans of a corpus.

    Attributes:
        starts: ``[S]`` int64, index of the span's first token in the corpus.
        lengths: ``[S]`` int64, tokens of the span, at least 1.
        offsets: ``[R + 1]`` int64: row r has the spans ``offsets[r]:offsets[r + 1]``.
    """

    starts: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray

    @property
    def widths(self) -> np.ndarray:
        """``[R]`` int64, tokens of each row without padding."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        return np.diff(ends[self.offsets])

    def __len__(self) -> int:
        """R."""
        return len(self.offsets) - 1

    @classmethod
    def concatenated(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of several parts of a corpus, one part after the other."""
        spans = np.cumsum([0, *(len(part.starts) for part in parts)])
        offsets = [part.offsets[:-1] + before for part, before in zip(parts, spans, strict=False)]
        return cls(
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([*offsets, spans[-1:]]),
        )


class Packing(NamedTuple):
    """How documents fill rows.

    Attributes:
        lay_out: offsets of documents in the corpus, ``[documents + 1]`` int64, to rows.
        fixed_width: whether rows hold several documents and every batch is W tokens wide; otherwise a row is one
            document, and rows of similar length share a batch.
        block_diagonal: whether attention stays within a document.
    """

    lay_out: Callable[[np.ndarray], Rows]
    fixed_width: bool
    block_diagonal: bool


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate ``arange(start, start + length)`` of all spans.

    Args:
        starts: ``[S]`` int64.
        lengths: ``[S]`` int64, may be 0.

    Returns:
        ``[sum(lengths)]`` int64.
    """
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def wrapped_rows(bounds: np.ndarray, width: int, *, block_diagonal: bool) -> Rows:
    """Concatenate the documents and split them into rows.

    Args:
        bounds: ``[documents + 1]`` int64, offsets of the documents in the corpus.
        width: W. Adjacent rows share one token; the last row may be shorter.
        block_diagonal: whether each document of a row is a span of its own; otherwise a row is one span.

    Returns:
        Rows: ``ceil((N - 1) / (W - 1))`` rows for N tokens.
    """
    low, high = int(bounds[0]), int(bounds[-1])
    count = -(-(high - low - 1) // (width - 1))
    starts = low + np.arange(count, dtype=np.int64) * (width - 1)
    ends = np.minimum(starts + width, high)
    if not block_diagonal or count == 0:
        return Rows(starts, ends - starts, np.arange(count + 1))
    # A document that begins at b splits the row that has b after its first token.
    splits = np.asarray(bounds[1:-1], dtype=np.int64)
    row = np.concatenate([np.arange(count), (splits - low - 1) // (width - 1)])
    starts = np.concatenate([starts, splits])
    order = np.lexsort((starts, row))
    starts, row = starts[order], row[order]
    last = np.append(row[1:] != row[:-1], True)
    lengths = np.where(last, ends[row], np.append(starts[1:], high)) - starts
    return Rows(starts, lengths, np.searchsorted(row, np.arange(count + 1)))


def best_fit_rows(bounds: np.ndarray, width: int) -> Rows:
    """Pack whole documents into rows: best fit, longest first.

    A document longer than a row is split into spans of W tokens that overlap by one, as in ``wrapped_rows``. This is
    the packing of Ding et al. 2024, "Fewer Truncations Improve Language Modeling". Best fit decreasing needs at most
    11/9 of the fewest rows possible, plus 4 (Johnson et al. 1974).

    Args:
        bounds: ``[documents + 1]`` int64, offsets of the documents in the corpus.
        width: W.

    Returns:
        Rows: in order of their first documents, so that the first rows are not a special sample.
    """
    sizes = np.diff(bounds)
    spans = np.maximum(1, -(-(sizes - 1) // (width - 1)))
    document = np.repeat(np.arange(len(sizes)), spans)
    skipped = ranges(np.zeros(len(sizes), np.int64), spans) * (width - 1)
    starts = np.asarray(bounds[:-1], np.int64)[document] + skipped
    lengths = np.minimum(width, sizes[document] - skipped)
    # Rows are ordered by their first span; within a row spans keep the order of the corpus.
    _, first, row = np.unique(_best_fit(lengths, width), return_index=True, return_inverse=True)
    row = np.argsort(np.argsort(first))[row]
    order = np.argsort(row, kind="stable")
    return Rows(starts[order], lengths[order], np.searchsorted(row[order], np.arange(len(first) + 1)))


def _best_fit(lengths: np.ndarray, width: int) -> np.ndarray:
    """The row of each span: the fullest row with enough room, or a new one. ``[S]`` -> ``[S]`` int64."""
    rows_by_room: list[list[int]] = [[] for _ in range(width + 1)]
    rooms: list[int] = []  # rooms of at least one row, ascending
    row_of = np.empty(len(lengths), np.int64)
    sizes, count = lengths.tolist(), 0
    for span in np.argsort(-lengths, kind="stable").tolist():
        size = sizes[span]
        at = bisect_left(rooms, size)
        if at == len(rooms):
            row, room, count = count, width, count + 1
        else:
            room = rooms[at]
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                del rooms[at]
        row_of[span] = row
        if left := room - size:
            if not rows_by_room[left]:
                insort(rooms, left)
            rows_by_room[left].append(row)
    return row_of


def single_rows(bounds: np.ndarray) -> Rows:
    """One whole document per row.

    Args:
        bounds: ``[documents + 1]`` int64, offsets of the documents in the corpus.
    """
    return Rows(np.asarray(bounds[:-1], np.int64), np.diff(bounds), np.arange(len(bounds)))
