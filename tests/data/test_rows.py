"""Packing: nothing is lost, nothing is read across documents, and the fit is good."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.data.rows import Rows, best_fit_rows, ranges, single_rows, wrapped_rows

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=40)
widths = st.integers(2, 12)


def bounds_of(sizes, start=0):
    return np.cumsum([start, *sizes])


def covered(rows):
    """Tokens by the rows that hold them: (inputs, targets), a token's number once per appearance.

    A row reads all but its last column; a piece's first token is no target.
    """
    inputs, targets = [], []
    for row in range(len(rows)):
        pieces = range(rows.offsets[row], rows.offsets[row + 1])
        tokens = [token for p in pieces for token in range(rows.starts[p], rows.starts[p] + rows.lengths[p])]
        inputs += tokens[:-1]
        targets += [token for p in pieces for token in range(rows.starts[p] + 1, rows.starts[p] + rows.lengths[p])]
    return inputs, targets


def test_ranges():
    """[5, 6], nothing, [0, 1, 2]."""
    assert ranges(np.array([5, 9, 0]), np.array([2, 0, 3])).tolist() == [5, 6, 0, 1, 2]


@given(sizes, widths, st.integers(0, 100))
def test_stream_uses_every_token_once(sizes, width, start):
    """N tokens: each but the last is an input once, each but the first a target once."""
    bounds = bounds_of(sizes, start)
    inputs, targets = covered(wrapped_rows(bounds, width, block_diagonal=False))
    assert inputs == list(range(start, bounds[-1] - 1))
    assert targets == list(range(start + 1, bounds[-1]))


@given(sizes, widths, st.integers(0, 100))
def test_block_diagonal_stream_cuts_only_at_documents(sizes, width, start):
    """The rows are those of the stream; targets all but the documents' first tokens; no piece spans two."""
    bounds = bounds_of(sizes, start)
    plain, block = (wrapped_rows(bounds, width, block_diagonal=flag) for flag in (False, True))
    assert (plain.widths == block.widths).all()
    assert covered(block)[0] == covered(plain)[0]
    assert covered(block)[1] == [token for token in range(start, bounds[-1]) if token not in bounds]
    first = np.searchsorted(bounds, block.starts, "right")
    assert (first == np.searchsorted(bounds, block.starts + block.lengths - 1, "right")).all()


@given(sizes, widths, st.integers(0, 100))
def test_document_packing_loses_nothing(sizes, width, start):
    """Targets are all tokens but the documents' first ones, once each; rows keep to the width; a document that fits in
    a row is one piece."""
    bounds = bounds_of(sizes, start)
    rows = best_fit_rows(bounds, width)
    assert (rows.widths <= width).all()
    assert (np.diff(rows.offsets) >= 1).all()
    assert sorted(covered(rows)[1]) == [token for token in range(start, bounds[-1]) if token not in bounds]
    pieces = dict(zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True))
    assert all(pieces[begin] == size for begin, size in zip(bounds, sizes, strict=False) if size <= width)


@given(sizes, widths)
def test_no_two_rows_could_be_one(sizes, width):
    """What best fit promises: a new row is opened only for what no row has room for."""
    lengths = np.sort(best_fit_rows(bounds_of(sizes), width).widths)
    assert len(lengths) < 2 or lengths[0] + lengths[1] > width


def fewest_rows(lengths, width):
    """By trying every row for every length, longest first."""
    best = len(lengths)

    def place(index, rooms):
        nonlocal best
        if len(rooms) >= best:
            return
        if index == len(lengths):
            best = len(rooms)
            return
        for row in {room: row for row, room in enumerate(rooms) if room >= lengths[index]}.values():
            rooms[row] -= lengths[index]
            place(index + 1, rooms)
            rooms[row] += lengths[index]
        place(index + 1, [*rooms, width - lengths[index]])

    lengths = sorted(lengths, reverse=True)
    place(0, [])
    return best


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9))
def test_best_fit_needs_few_rows(sizes):
    """At most 11/9 of the fewest rows, plus 1."""
    assert len(best_fit_rows(bounds_of(sizes), 12)) <= fewest_rows(sizes, 12) * 11 / 9 + 1


def test_best_fit_where_it_is_not_optimal():
    """Width 10, lengths 5 4 4 3 2 2: best fit fills 5 + 4 and 4 + 3 + 2 and needs a third row for the last 2; two rows
    would do: 5 + 3 + 2 and 4 + 4 + 2."""
    lengths = [5, 4, 4, 3, 2, 2]
    assert (len(best_fit_rows(bounds_of(lengths), 10)), fewest_rows(lengths, 10)) == (3, 2)


def test_best_fit_by_hand():
    """Width 10, lengths 4 6 5 5 3: 6 + 4, 5 + 5, 3; numbered by their first documents: (4, 6), (5, 5), (3)."""
    rows = best_fit_rows(bounds_of([4, 6, 5, 5, 3]), 10)
    assert rows.lengths.tolist() == [4, 6, 5, 5, 3]
    assert rows.offsets.tolist() == [0, 2, 4, 5]


def test_rows_of_several_parts():
    """Two parts of a corpus: the rows of the first, then those of the second."""
    parts = [best_fit_rows(bounds_of([4, 6, 5]), 10), best_fit_rows(bounds_of([3, 3], 15), 10)]
    rows = Rows.concatenated(parts)
    assert rows.starts.tolist() == [0, 4, 10, 15, 18]
    assert rows.widths.tolist() == [10, 5, 6]


def test_single_rows():
    """A document a row."""
    rows = single_rows(bounds_of([3, 1, 2], 5))
    assert rows.starts.tolist() == [5, 8, 9]
    assert rows.widths.tolist() == [3, 1, 2]


@pytest.mark.parametrize("count", [0, 1])
def test_too_little_for_a_row(count):
    """No token, or one that nothing follows: no rows."""
    assert len(wrapped_rows(np.array([0, count]), 4, block_diagonal=True)) == 0
