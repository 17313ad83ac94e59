"""How documents are split into windows, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.evaluate.text_loss import windows


def split(ids, opening, context, **settings):
    return [(list(of.context), list(of.ids)) for of in windows(ids, opening, context, **settings)]


def test_windows_by_hand() -> None:
    """A context of 3 reads 3 tokens and predicts the next of each. With an opening 9 the first window counts 3 tokens;
    without one the first token is not counted. The last window counts what is left, after as much as fits.
    """
    assert split([1, 2, 3, 4, 5], [9], 3) == [([9], [1, 2, 3]), ([2, 3], [4, 5])]
    assert split([1, 2, 3, 4, 5, 6], [9], 3) == [([9], [1, 2, 3]), ([3], [4, 5, 6])]
    assert split([1, 2, 3, 4, 5], [], 3) == [([1], [2, 3, 4]), ([2, 3, 4], [5])]
    assert split([1], [], 3) == []
    assert split([1, 2, 3], [8, 9], 3) == [([8, 9], [1, 2]), ([9, 1, 2], [3])]


def test_a_stride_leaves_context() -> None:
    """Windows of 4 tokens, 2 of them counted."""
    expected = [([9], [1, 2, 3]), ([2, 3], [4, 5]), ([4, 5], [6, 7])]
    assert split([1, 2, 3, 4, 5, 6, 7], [9], 3, stride=2) == expected
    for stride in (0, 4):
        with pytest.raises(ValueError, match="stride"):
            split([1, 2], [9], 3, stride=stride)


@given(st.integers(0, 30), st.booleans(), st.integers(1, 9), st.data())
def test_every_token_is_counted_once_after_what_stands_before_it(tokens, opened, context, data) -> None:
    stride = data.draw(st.integers(1, context))
    ids, opening = list(range(tokens)), [99] if opened else []
    whole = [*opening, *ids]
    found = split(ids, opening, context, stride=stride)
    assert [token for _, counted in found for token in counted] == whole[1:]
    for before, counted in found:
        end = whole.index(counted[-1]) + 1
        assert whole[end - len(before) - len(counted) : end] == before + counted
        assert len(before) >= 1
        assert len(before) + len(counted) <= context + 1
