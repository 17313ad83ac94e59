"""Which tokens stand in which row: every kind of packing, as slices of the corpus.

A row is a list of pieces, a piece is a run of tokens of the corpus; ``collate`` lays them out side by side. A row of
width W holds W - 1 predictions, so a text cut at a row's end goes on in the next row from the very token it ended
with: that token is a target in the one and an input in the other.

Legend: P pieces, R rows, W width of a row, tokens.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Rows as pieces of a corpus.

    Attributes:
        starts: ``[P]`` int64, first token of the piece in the corpus.
        lengths: ``[P]`` int64, tokens of the piece, at least 1.
        offsets: ``[R + 1]`` int64: row r holds the pieces ``offsets[r]:offsets[r + 1]``.
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


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate ``arange(start, start + length)`` of every pair.

    Args:
        starts: ``[P]`` int64.
        lengths: ``[P]`` int64, zero allowed.

    Returns:
        ``[sum(lengths)]`` int64.
    """
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def stream_rows(bounds: np.ndarray, width: int, *, block_diagonal: bool) -> Rows:
    """Cut the documents, laid one after another, into rows.

    Args:
        bounds: ``[documents + 1]`` int64, where documents begin in the corpus, and the end.
        width: W. Neighbouring rows share one token; the last row may be shorter.
        block_diagonal: a row's pieces are its documents; otherwise a row is one piece.

    Returns:
        Rows: ``ceil((N - 1) / (W - 1))`` rows for N tokens.
    """
    low, high = int(bounds[0]), int(bounds[-1])
    count = -(-(high - low - 1) // (width - 1))
    starts = low + np.arange(count, dtype=np.int64) * (width - 1)
    ends = np.minimum(starts + width, high)
    if not block_diagonal or count == 0:
        return Rows(starts, ends - starts, np.arange(count + 1))
    # A document that begins at b cuts the one row which holds b after its first token.
    cuts = np.asarray(bounds[1:-1], dtype=np.int64)
    row = np.concatenate([np.arange(count), (cuts - low - 1) // (width - 1)])
    starts = np.concatenate([starts, cuts])
    order = np.lexsort((starts, row))
    starts, row = starts[order], row[order]
    last = np.append(row[1:] != row[:-1], True)
    lengths = np.where(last, ends[row], np.append(starts[1:], high)) - starts
    return Rows(starts, lengths, np.searchsorted(row, np.arange(count + 1)))


def document_rows(bounds: np.ndarray, width: int) -> Rows:
    """Place whole documents into rows, best fit first, longest first.

    A document longer than a row is cut into row-sized pieces that overlap by one token, as a stream is.

    Args:
        bounds: ``[documents + 1]`` int64, where documents begin in the corpus, and the end.
        width: W.

    Returns:
        Rows: in the order of their first documents, so that the first rows are no special sample.
    """
    sizes = np.diff(bounds)
    pieces = np.maximum(1, -(-(sizes - 1) // (width - 1)))
    document = np.repeat(np.arange(len(sizes)), pieces)
    skipped = ranges(np.zeros(len(sizes), np.int64), pieces) * (width - 1)
    starts = np.asarray(bounds[:-1], np.int64)[document] + skipped
    lengths = np.minimum(width, sizes[document] - skipped)
    # Rows are numbered by the first piece they hold; within a row the pieces keep the corpus's order.
    _, first, row = np.unique(_best_fit(lengths, width), return_index=True, return_inverse=True)
    row = np.argsort(np.argsort(first))[row]
    order = np.argsort(row, kind="stable")
    return Rows(starts[order], lengths[order], np.searchsorted(row[order], np.arange(len(first) + 1)))


def _best_fit(lengths: np.ndarray, width: int) -> np.ndarray:
    """Give each piece a row: the fullest row that still has room, or a new one. ``[P]`` -> ``[P]`` int64."""
    rows_by_room: list[list[int]] = [[] for _ in range(width + 1)]
    rooms: list[int] = []  # the rooms that some row has, ascending
    row_of = np.empty(len(lengths), np.int64)
    sizes, count = lengths.tolist(), 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        size = sizes[piece]
        at = bisect_left(rooms, size)
        if at == len(rooms):
            row, room, count = count, width, count + 1
        else:
            room = rooms[at]
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                del rooms[at]
        row_of[piece] = row
        if left := room - size:
            if not rows_by_room[left]:
                insort(rooms, left)
            rows_by_room[left].append(row)
    return row_of


def single_rows(bounds: np.ndarray) -> Rows:
    """One document a row, as long as it is.

    Args:
        bounds: ``[documents + 1]`` int64, where documents begin in the corpus, and the end.
    """
    return Rows(np.asarray(bounds[:-1], np.int64), np.diff(bounds), np.arange(len(bounds)))
