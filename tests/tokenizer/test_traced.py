"""Traced strings: equal to strings under every operation, and each character knows where it came from."""

from string import Formatter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.tokenizer.traced import ALTERED, Traced, as_json, braces, join, percent, pieces_of, safe, trace

words = st.text("ab \n<x>", max_size=12)


def _origins(text: str) -> list[str | None]:
    """The character that each one was, by its leaf; None: text of the template."""
    found: list[str | None] = []
    for piece in pieces_of(text):
        leaf = piece.leaf
        found += [leaf.text[piece.offset + i] if leaf else None for i in range(piece.length)]
    return found


OPERATIONS = [
    lambda s: s.strip(),
    lambda s: s.lstrip("a"),
    lambda s: s.rstrip("\n"),
    lambda s: s[1:-1],
    lambda s: s[::-1],
    lambda s: s[-1:] + s[:1],
    lambda s: s * 2,
    lambda s: "".join(s),
    lambda s: "".join(s.split()),
    lambda s: s.split("a"),
    lambda s: s.split(None, 1),
    lambda s: s.rsplit(None, 1),
    lambda s: s.rsplit("a", 1),
    lambda s: s.splitlines(),
    lambda s: s.splitlines(keepends=True),
    lambda s: s.partition("a"),
    lambda s: s.rpartition("a"),
    lambda s: s.removeprefix("a"),
    lambda s: s.removesuffix("b"),
    lambda s: s.replace("c", "d"),
    lambda s: s.replace("a", "", 1),
    lambda s: ("<" in s, s.startswith("a"), s.find("b"), len(s), s == s[:], hash(s)),
]


@pytest.mark.parametrize("operation", OPERATIONS)
@given(text=words)
def test_operations(operation, text):
    """Same value; every character that remains is one of the string's, unaltered."""
    traced = trace(text, 0)
    found, expected = operation(traced), operation(text)
    assert found == expected
    for part in [found] if isinstance(found, str) else found:
        if isinstance(part, Traced):
            assert _origins(part) == list(part)


@given(before=words, text=words, after=words)
def test_concatenation(before, text, after):
    """Text of the template has no origin; an empty string of the chat leaves a piece of no length."""
    whole = before + trace(text, 3) + after
    assert whole == before + text + after == join([before, trace(text, 3), after])
    assert _origins(whole) == [None] * len(before) + list(text) + [None] * len(after)
    assert 3 in {piece.leaf.message for piece in pieces_of(whole) if piece.leaf}


@given(
    text=st.text(max_size=8), method=st.sampled_from(["upper", "lower", "title", "capitalize", "swapcase", "casefold"])
)
def test_altered_characters(text, method):
    """As strings change case; a character that differs is marked."""
    found = getattr(trace(text, 0), method)()
    assert found == getattr(text, method)()
    if len(found) == len(text):
        flags = [piece.flags for piece in pieces_of(found) for _ in range(piece.length)]
        assert flags == [ALTERED if a != b else 0 for a, b in zip(found, text, strict=True)]


def test_what_replaces_is_template_text():
    assert _origins(trace("abca", 0).replace("a", "xy")) == [None, None, "b", "c", None, None]


def test_json():
    """The JSON of a value belongs to the message that it came from; of a value without strings, to the template."""
    value = trace({"a": ["b", 1]}, 2, ("tool_calls",))
    (piece,) = pieces_of(as_json(value, '{"a": ["b", 1]}'))
    assert (piece.leaf.message, piece.leaf.path, piece.length) == (2, ("tool_calls", "<key>"), 15)
    assert [leaf.text for leaf in piece.leaf.parts] == ["a", "b"]
    assert not isinstance(as_json(trace({}, 2), "{}"), Traced)


@given(left=words, right=words)
def test_safe_strings(left, right):
    """As markupsafe's: what is added is escaped."""
    from markupsafe import Markup

    assert safe(trace(left, 0)) + trace(right, 1) == Markup(left) + right
    assert trace(right, 1) + safe(trace(left, 0)) == right + Markup(left)


@given(first=words, second=words, template=st.sampled_from(["<%s|%s>", "%s%%%s", "%-3s|%r"]))
def test_percent(first, second, template):
    """As Python's %; what stands for %s keeps its origin."""
    found = percent(template, (trace(first, 0), trace(second, 1)))
    assert found == template % (first, second)
    if "r" not in template:
        assert [one for one in _origins(found) if one] == [*first, *second]


@given(first=words, second=words, template=st.sampled_from(["<{}|{}>", "{1}{{}}{0}", "{a:>4}{b!r}", "{a}{b[0]:s}"]))
def test_braces(first, second, template):
    """As Python's format; what stands for a string keeps its origin."""
    named = {"a": first, "b": [second]}
    traced = {"a": trace(first, 0), "b": [trace(second, 1)]}
    found = braces(template, (trace(first, 0), trace(second, 1)), traced, Formatter())
    assert found == template.format(first, second, **named)
    if "!" not in template:
        assert sorted(one for one in _origins(found) if one) == sorted([*first, *second])
