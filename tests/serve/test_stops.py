import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.serve.stops import StopFinder

TEXT = st.text("abc", max_size=30)


@given(pieces=st.lists(st.text("abc", max_size=5), max_size=12), stops=st.lists(st.text("abc", min_size=1, max_size=4)))
def test_pieces_give_what_single_characters_give(pieces, stops):
    """By definition: characters one by one, cut before the first stop sequence that ends the text so far."""
    expected, found = "".join(pieces), False
    for end in range(1, len(expected) + 1):
        if ending := [stop for stop in stops if expected[:end].endswith(stop)]:
            expected, found = expected[: end - max(map(len, ending))], True
            break
    finder = StopFinder(stops)
    text = "".join(finder.push(piece) for piece in pieces) + finder.flush()
    assert (text, finder.found) == (expected, found)


def test_only_a_possible_beginning_waits():
    finder = StopFinder(["\nUser:", "END"])
    assert finder.push("a\nUs") == "a"
    assert finder.push("ual EN") == "\nUsual "
    assert finder.push("d") == "ENd"
    assert finder.push("EN") == ""
    assert finder.flush() == "EN"
    assert not finder.found


@pytest.mark.parametrize("piece", ["", "more"])
def test_nothing_comes_after_a_stop(piece):
    finder = StopFinder(["b"])
    assert finder.push("abc") == "a"
    assert finder.push(piece) == ""
    assert finder.flush() == ""
