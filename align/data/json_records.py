"""Parse JSON records strictly, and JSON lists one value at a time.

Python's ``json`` silently keeps the last of two equal keys, and raises errors other than JSONDecodeError for deep
nesting and long integers. Here each of these is the reason for one bad record.
"""

import codecs
import json
import re
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

_BLOCK = 1 << 20  # bytes read at a time
_LITERAL = 16  # characters; a syntax error this close to the end of the text may only be an incomplete value
_BRACKET_OR_STRING = re.compile(r'[\[\]{}]|"[^"\\]*(?:\\.[^"\\]*)*(?P<closed>")?', re.DOTALL)
_NUMBER = re.compile(r"[-+.\deE]*")
_SPACE = re.compile(r"[ \t\n\r]*")


class Unreadable(NamedTuple):
    """A value that is valid JSON but can't be used as a record.

    Attributes:
        reason: why, for the error message.
    """

    reason: str


class _RepeatedKey(ValueError):
    """An object has two equal keys."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(next(name for name in names if names.count(name) > 1))
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def parse(text: str) -> Any:
    """The value of a JSON text.

    Returns:
        the value, or Unreadable.

    Raises:
        json.JSONDecodeError: it is not JSON.
    """
    try:
        return _DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        return _unreadable(error)


def _unreadable(error: Exception) -> Unreadable:
    """The reason an error gives; raises it if it is a syntax error."""
    if isinstance(error, json.JSONDecodeError):
        raise error
    if isinstance(error, RecursionError):
        return Unreadable("nested too deeply")
    if isinstance(error, _RepeatedKey):
        return Unreadable(f"the key {error.args[0]!r} occurs twice in one object, so one value would be lost")
    return Unreadable(f"has an integer of more than {sys.get_int_max_str_digits():,} digits; write it as text")


class JsonList:
    """Iterates over the values of a JSON list without reading the whole file first."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Begin at the start of a list.

        Args:
            file: UTF-8.
            name: of the file, for error messages.
        """
        self._file, self._name = file, name
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogatepass").decode
        self._text, self._at = "", 0
        self._line = 1  # of the first character held
        self._bytes, self._ended = 0, False

    def __iter__(self) -> Iterator[Any]:
        """The values, each as from ``parse``.

        Raises:
            ValueError: the file is not JSON, not UTF-8, or not a list; names the file and the line or the byte.
        """
        if self._next() != "[":
            raise ValueError(f"{self._name}: must contain a list of records, found {self._text[self._at :][:20]!r}")
        self._at += 1
        if self._next() != "]":
            while True:
                yield self._value()
                if self._next() != ",":
                    break
                self._at += 1
                self._next()
        if self._next() != "]":
            raise self._error("Expecting ',' or ']'", self._at)
        self._at += 1
        if self._next():
            raise self._error("more after the end of the list", self._at)

    def _next(self) -> str:
        """The next character that is not whitespace; empty at the end of the file."""
        while True:
            self._at = self._end_of(_SPACE)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _value(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (RecursionError, ValueError) as error:
                incomplete = isinstance(error, json.JSONDecodeError) and (
                    error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LITERAL
                )
                if incomplete and self._more():
                    continue
                try:
                    value = _unreadable(error)
                except json.JSONDecodeError as syntax:
                    raise self._error(syntax.msg, syntax.pos) from None
                end = self._end_of_value()
            if end <= len(self._text) - _LITERAL or not self._more():  # a number near the end may continue: 1, 1e-07
                self._at = end
                return value

    def _end_of_value(self) -> int:
        """The end of the value at the current position, found by matching brackets."""
        if self._text[self._at] not in "[{":
            return self._end_of(_NUMBER)  # a string or a literal can't be unreadable
        while True:
            depth = 0
            for match in _BRACKET_OR_STRING.finditer(self._text, self._at):
                sign = match.group()[0]
                if sign == '"' and match["closed"] is None:
                    break
                depth += (sign in "[{") - (sign in "]}")
                if depth == 0:
                    return match.end()
            if not self._more():
                return len(self._text)

    def _end_of(self, pattern: re.Pattern[str]) -> int:
        """The end of what a pattern matches at the current position."""
        match = pattern.match(self._text, self._at)
        return self._at if match is None else match.end()

    def _more(self) -> bool:
        """Read more, at least doubling the unparsed text; False at the end of the file."""
        if self._ended:
            return False
        data = self._file.read(max(_BLOCK, len(self._text) - self._at))
        self._bytes, self._ended = self._bytes + len(data), not data
        try:
            text = self._decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            at = self._bytes - len(error.object) + error.start
            raise ValueError(f"{self._name}: not UTF-8: byte 0x{error.object[error.start]:02x} at {at}") from None
        if not self._ended:  # at the end, callers still hold positions in the text
            self._line += self._text.count("\n", 0, self._at)
            self._text, self._at = self._text[self._at :] + text, 0
        return not self._ended

    def _error(self, reason: str, position: int) -> ValueError:
        line = self._line + self._text.count("\n", 0, position)
        column = position - self._text.rfind("\n", 0, position)
        return ValueError(f"{self._name}: line {line}: not JSON: {reason} at column {column}")
