"""Strings that remember where their characters came from.

A chat template is a program that takes the strings of a chat apart and joins them with text of its own. `Traced` is a
str with the same value under every operation whose result also says, for each character, which string of the chat it
was and whether it was altered. So a rendered chat shows what of it is whose, without searching.

An operation that builds its result outside Python's string methods yields a plain str: its characters then look like
text of the template. `percent` and `braces` follow formatted strings; other losses are found by `chat_mask`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from string import Formatter
from typing import Any, NamedTuple, SupportsIndex

PLAIN = 0
ALTERED = 1
"""The characters came from the chat, but not in this form (upper case)"""
GENERATED = 2
"""Between ``{% generation %}`` and ``{% endgeneration %}``"""


class Leaf:
    """A string of a chat.

    Attributes:
        message: index of its message; -1: not in a message (tools).
        path: keys and indices that lead to it in its message.
        text: the string.
        parts: leaves of which a JSON rendering was made; empty for the strings of the chat themselves.
    """

    __slots__ = ("message", "parts", "path", "text")

    def __init__(self, message: int, path: tuple[str | int, ...], text: str, parts: "tuple[Leaf, ...]" = ()) -> None:
        """Keep the attributes."""
        self.message, self.path, self.text, self.parts = message, path, text, parts


class Piece(NamedTuple):
    """Adjacent characters of the same origin.

    Attributes:
        length: characters, may be 0: an empty string that has an origin.
        leaf: the string of the chat; None: the template's own text.
        offset: index of the first character in ``leaf.text``.
        flags: ALTERED, GENERATED.
    """

    length: int
    leaf: Leaf | None
    offset: int
    flags: int


Pieces = tuple[Piece, ...]


class Traced(str):
    """A str whose characters have an origin; see the module."""

    __slots__ = ("_pieces",)
    _pieces: Pieces

    def __new__(cls, text: str, pieces: Pieces) -> "Traced":
        """A string of ``sum(piece.length for piece in pieces)`` characters."""
        made = str.__new__(cls, text)
        made._pieces = pieces
        return made

    @property
    def plain(self) -> str:
        """The same characters without origins."""
        return str.__str__(self)

    def __str__(self) -> str:
        """Itself, so that ``str()`` in compiled templates keeps the origin."""
        return self

    def __add__(self, other: str) -> str:  # noqa: D105
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return Traced(str.__add__(self, other), self._pieces + pieces_of(other))

    def __radd__(self, other: str) -> str:  # noqa: D105
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return Traced(str.__add__(other, self), pieces_of(other) + self._pieces)

    def __mul__(self, count: SupportsIndex) -> str:  # noqa: D105
        return Traced(str.__mul__(self, count), self._pieces * max(0, count.__index__()))

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> str:  # noqa: D105
        if not isinstance(key, slice):
            index = range(len(self))[key]
            return self._cut(index, index + 1)
        start, stop, step = key.indices(len(self))
        if step == 1:
            return self._cut(start, max(start, stop))
        return join(self._cut(index, index + 1) for index in range(start, stop, step))

    def __iter__(self) -> Iterator[str]:  # noqa: D105
        return (self._cut(index, index + 1) for index in range(len(self)))

    def _cut(self, start: int, stop: int) -> str:
        text = str.__getitem__(self, slice(start, stop))
        cut, begin = [], 0
        for piece in self._pieces:
            first, last = max(start, begin), min(stop, begin + piece.length)
            if first < last:
                cut.append(piece._replace(length=last - first, offset=piece.offset + first - begin))
            elif start == stop and begin <= start <= begin + piece.length and not cut:
                cut.append(piece._replace(length=0, offset=piece.offset + start - begin))
            begin += piece.length
        return type(self)(text, tuple(cut))

    def strip(self, chars: str | None = None, /) -> str:  # noqa: D102
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> str:  # noqa: D102
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:  # noqa: D102
        return self._cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> str:  # noqa: D102
        return self._cut(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:  # noqa: D102
        return self._cut(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:  # noqa: D102
        return self._located(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:  # noqa: D102
        return self._located(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:  # noqa: D102
        lines, begin = [], 0
        for whole, line in zip(str.splitlines(self, True), str.splitlines(self, keepends), strict=True):
            lines.append(self._cut(begin, begin + len(line)))
            begin += len(whole)
        return lines

    def partition(self, sep: str, /) -> tuple[str, str, str]:  # noqa: D102
        return self._parted(str.partition(self, sep))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:  # noqa: D102
        return self._parted(str.rpartition(self, sep))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:  # noqa: D102
        if old not in self:
            return self
        if not old:
            return self._altered(str.replace(self, old, new, count))
        return join(self._located(str.split(self, old, count), old), new)

    def join(self, strings: Iterable[str], /) -> str:  # noqa: D102
        return join(strings, self)

    def _located(self, parts: list[str], sep: str | None) -> list[str]:
        """Parts of this string, in order, with ``sep`` (None: whitespace) between them."""
        located, begin = [], 0
        for part in parts:
            begin = str.find(self, part, begin) if sep is None else begin
            located.append(self._cut(begin, begin + len(part)))
            begin += len(part) + len(sep or "")
        return located

    def _parted(self, parts: tuple[str, str, str]) -> tuple[str, str, str]:
        first, second = len(parts[0]), len(parts[0]) + len(parts[1])
        return self._cut(0, first), self._cut(first, second), self._cut(second, len(self))

    def _altered(self, text: str) -> str:
        """Another form of this string: equal characters keep their origin, the others are marked."""
        if len(text) == len(self):
            pairs = zip(text, self, strict=True)
            return join(own if own == char else _marked(own, char) for char, own in pairs)
        leaf = next((piece.leaf for piece in self._pieces if piece.leaf), None)
        return Traced(text, (Piece(len(text), leaf, 0, ALTERED),))


class Safe(Traced):
    """What Jinja's filter ``safe`` gives, markupsafe's Markup: strings that are added to it are escaped."""

    __slots__ = ()

    def __html__(self) -> str:
        """Itself: it is not escaped."""
        return self

    def __add__(self, other: str) -> str:  # noqa: D105
        return safe(join([self, _escaped(other)])) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:  # noqa: D105
        return safe(join([_escaped(other), self])) if isinstance(other, str) else NotImplemented


def safe(text: str) -> Safe:
    """The string as ``Safe``."""
    return Safe(text, pieces_of(text))


def _escaped(text: str) -> str:
    if hasattr(text, "__html__"):
        return text
    for char, entity in (("&", "&amp;"), (">", "&gt;"), ("<", "&lt;"), ("'", "&#39;"), ('"', "&#34;")):
        text = text.replace(char, entity)
    return text


def _marked(own: str, char: str) -> Traced:
    return Traced(char, tuple(piece._replace(flags=piece.flags | ALTERED) for piece in pieces_of(own)))


def _altering(name: str) -> Callable[..., str]:
    method = getattr(str, name)

    def altering(self: Traced, *args: Any) -> str:
        return self._altered(method(self, *args))

    return altering


for _name in (
    "upper", "lower", "capitalize", "title", "swapcase", "casefold", "translate", "expandtabs", "center", "ljust",
    "rjust", "zfill",
):  # fmt: skip
    setattr(Traced, _name, _altering(_name))


def pieces_of(text: str) -> Pieces:
    """The origins of a string's characters."""
    if isinstance(text, Traced):
        return text._pieces
    return (Piece(len(text), None, 0, PLAIN),) if text else ()


def join(strings: Iterable[str], separator: str = "") -> str:
    """``separator.join(strings)``."""
    found = list(strings)
    text = str.join(separator, found)
    pieces: list[Piece] = []
    between = pieces_of(separator)
    for index, string in enumerate(found):
        if index:
            pieces += between
        pieces += pieces_of(string)
    return Traced(text, tuple(pieces))


_CONVERSION = re.compile(r"%(?:\((?P<key>[^)]*)\))?(?P<spec>[#0\- +]*\d*(?:\.\d+)?)[hlL]?(?P<kind>[diouxXeEfFgGcrsa%])")


def percent(text: str, values: Any) -> str:
    """``text % values``, with the origin of the strings in it.

    Raises:
        TypeError: as Python's own.
    """
    plain = str.__mod__(text, values)
    left = iter(values if isinstance(values, tuple) else (values,))
    found, end = [], 0
    for match in _CONVERSION.finditer(text):
        found.append(text[end : match.start()])
        end = match.end()
        if match["kind"] == "%":
            found.append("%")
            continue
        value = next(left, None) if match["key"] is None else values[match["key"]]
        found.append(_formatted(value, f"%{match['spec']}{match['kind']}" % (value,)))
    return _if_equal(join([*found, text[end:]]), plain)


def braces(text: str, values: Sequence[Any], named: Mapping[str, Any], formatter: Formatter) -> str:
    """``text.format(*values, **named)``, with the origin of the strings in it.

    Args:
        text: the format.
        values: by position.
        named: by name.
        formatter: looks up the fields.
    """
    plain = formatter.vformat(text, values, named)
    found, number = [], 0
    for literal, name, spec, conversion in formatter.parse(text):
        found.append(literal)
        if name is None:
            continue
        if name[:1] in ("", ".", "["):
            name, number = f"{number}{name}", number + 1
        value, _ = formatter.get_field(name, values, named)
        shown = formatter.format_field(
            formatter.convert_field(value, conversion), formatter.vformat(spec or "", values, named)
        )
        found.append(_formatted(value, shown))
    return _if_equal(join(found), plain)


def _formatted(value: Any, shown: str) -> str:
    """How a value is shown in a formatted string."""
    if not isinstance(value, Traced):
        return shown
    return value if value == shown else value._altered(shown)


def _if_equal(followed: str, plain: str) -> str:
    """What was followed, unless Python's result is another (``%*d``)."""
    return followed if followed == plain else plain


def generated(text: str) -> str:
    """The string, all of it marked as GENERATED."""
    return Traced(text, tuple(piece._replace(flags=piece.flags | GENERATED) for piece in pieces_of(text)))


def trace(value: Any, message: int, path: tuple[str | int, ...] = ()) -> Any:
    """A JSON value with every string in it traced, keys of nested objects too.

    Args:
        value: of a chat.
        message: index of its message, or -1.
        path: where ``value`` is in the message.
    """
    if isinstance(value, str):
        return Traced(value, (Piece(len(value), Leaf(message, path, value), 0, PLAIN),))
    if isinstance(value, dict):
        return {_key(key, message, path): trace(item, message, (*path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [trace(item, message, (*path, index)) for index, item in enumerate(value)]
    return value


def _key(key: Any, message: int, path: tuple[str | int, ...]) -> Any:
    if not path or not isinstance(key, str):
        return key
    return Traced(key, (Piece(len(key), Leaf(message, (*path, "<key>"), key), 0, PLAIN),))


def leaves(value: Any) -> Iterator[Leaf]:
    """The leaves of a traced JSON value."""
    if isinstance(value, Traced):
        yield from dict.fromkeys(piece.leaf for piece in value._pieces if piece.leaf)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(key)
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)


def as_json(value: Any, text: str) -> str:
    """``text``, the JSON of a traced value, as one string of the message that the value came from."""
    made_of = tuple(leaves(value))
    if not made_of:
        return text
    leaf = Leaf(made_of[0].message, made_of[0].path, text, made_of)
    return Traced(text, (Piece(len(text), leaf, 0, PLAIN),))
