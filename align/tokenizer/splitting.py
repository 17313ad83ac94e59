r"""Cut text into words with the regular expressions of tokenizer files.

These expressions are written for engines that know ``\p{L}``. Python's own ``re`` does not, but runs two to three times
as fast as the ``regex`` package, so each expression is rewritten with explicit character ranges:

1. ``\p{..}``, ``\s`` and ``\d`` become ranges of Unicode 16.0 (see unicode16.py).
2. The ranges are clipped to what the text holds: ASCII, the basic plane, or all of Unicode. A text's kind is known from
   its size alone, and ``re`` answers membership in the first two with one look-up.
3. In the third it walks along hundreds of ranges. So in texts with characters beyond the basic plane (emoji) each of
   these is first replaced by one of the basic plane of the same category, and the words are cut from the text where
   those of the replaced text lie.
4. Text that no alternative matches is a word too ("Isolated" in tokenizer files), so nothing is lost.

An expression that uses more than this (``\w``, ``\b``, scripts, set operations) is left to the ``regex`` package.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

from align.tokenizer.unicode16 import LAST, WHITE_SPACE, Ranges, category, category_ranges, complement

PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""Names that `train_tokenizer` knows. Both match every character of any text."""

_ASCII, _BASIC = 0x7F, 0xFFFF
_BEYOND_BASIC = re.compile("[\U00010000-\U0010ffff]")
_NAMED_CHAR = re.compile(r"\\[xuU]")
_PLAIN_ESCAPES = frozenset("nrtfvax") | frozenset("uU0")
_GROUPS = ("(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:")


class Split(NamedTuple):
    """One step of cutting."""

    pattern: str
    """The regular expression, as tokenizer.json writes it"""
    keep_gaps: bool = True
    """Text between matches is a word (tokenizer.json: Isolated) or dropped (Removed, inverted)"""


class _TooRichError(Exception):
    """The expression uses what `_translate` does not rewrite."""


def resolve_pattern(pattern: str) -> str:
    """The regular expression of a name in `PATTERNS`, or the expression itself.

    Raises:
        ValueError: it does not compile.
    """
    expression = PATTERNS.get(pattern, pattern)
    _findall(Split(expression), _ASCII)
    return expression


def split_words(text: str, splits: tuple[Split, ...]) -> list[str]:
    """Cut a text by each split in turn; without splits the text is one word."""
    if not splits:
        return [text] if text else []
    if text.isascii():
        return _cut(text, splits, _ASCII)
    if len(text.encode("utf-16-le", "surrogatepass")) == 2 * len(text):
        return _cut(text, splits, _BASIC)
    if not all(
        split.keep_gaps and split.pattern.isascii() and not _NAMED_CHAR.search(split.pattern) for split in splits
    ):
        return _cut(text, splits, LAST)  # it may tell characters of one category apart, or drop some
    lengths = map(len, _cut(_BEYOND_BASIC.sub(_stand_in, text), splits, _BASIC))
    return [text[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]


def _cut(text: str, splits: tuple[Split, ...], last: int) -> list[str]:
    words = _findall(splits[0], last)(text)
    for split in splits[1:]:
        words = list(chain.from_iterable(map(_findall(split, last), words)))
    return words


def _stand_in(match: re.Match[str]) -> str:
    return _stand_in_of(match.group())


@lru_cache(maxsize=4096)
def _stand_in_of(char: str) -> str:
    """A character of the basic plane and the same category, the last one, which no expression names."""
    return chr(next(b for _, b in reversed(category_ranges(category(char))) if b <= _BASIC))


@lru_cache(maxsize=64)
def _findall(split: Split, last: int) -> Callable[[str], list[str]]:
    """The compiled expression's ``findall`` for texts whose code points end at ``last``."""
    try:
        expression = _translate(split.pattern, last)
        if split.keep_gaps and split.pattern not in PATTERNS.values():
            expression += rf"|(?:(?!{expression})[\s\S])+"
        return re.compile(expression).findall
    except _TooRichError:
        return _rich_findall(split)
    except re.error as error:
        raise ValueError(f"split pattern {split.pattern!r} does not compile: {error}") from None


def _rich_findall(split: Split) -> Callable[[str], list[str]]:
    """As `_findall`, with the `regex` package."""
    import regex

    try:
        gaps = rf"|(?:(?!{split.pattern})[\s\S])+" if split.keep_gaps else ""
        find = regex.compile(split.pattern + gaps).finditer
    except regex.error as error:
        raise ValueError(f"split pattern {split.pattern!r} does not compile: {error}") from None
    return lambda text: [match.group() for match in find(text)]


def _translate(pattern: str, last: int) -> str:
    """Rewrite an expression for ``re``, its ranges clipped to code points up to ``last``; groups stop capturing."""
    out: list[str] = []
    place, inside = 0, False
    while place < len(pattern):
        char = pattern[place]
        if char == "\\":
            step, ranges = _escape(pattern, place)
            if ranges is None:
                out.append(pattern[place : place + step])
            else:
                out.append(_members(ranges, last) if inside else f"[{_members(ranges, last)}]")
            place += step
            continue
        if inside:
            if char == "[" or pattern.startswith("&&", place):
                raise _TooRichError
            inside = char != "]"
        elif char == "[":
            inside = True
            head = re.compile(r"\[\^?\]?").match(pattern, place)
            assert head is not None
            out.append(head.group())
            place = head.end()
            continue
        elif char == "(":
            group = next((g for g in _GROUPS if pattern.startswith(g, place)), None)
            if group is None and pattern.startswith("(?", place):
                raise _TooRichError
            out.append(group or "(?:")
            place += len(group or "(")
            continue
        elif char in "^$":
            # Engines disagree on what these match (a line's or the text's end).
            raise ValueError(f"split pattern {pattern!r} uses {char!r}, which is not supported")
        out.append(char)
        place += 1
    return "".join(out)


def _escape(pattern: str, place: int) -> tuple[int, Ranges | None]:
    """Length of the escape at ``place`` and the code points it stands for; None: ``re`` reads it alike."""
    letter = pattern[place + 1 : place + 2]
    if letter in ("s", "S"):
        return 2, WHITE_SPACE if letter == "s" else complement(WHITE_SPACE)
    if letter in ("d", "D"):
        return 2, category_ranges("Nd") if letter == "d" else complement(category_ranges("Nd"))
    if letter in ("p", "P"):
        found = re.compile(r"\\[pP](?:\{(\^?)([^{}]+)\}|([A-Z]))").match(pattern, place)
        if not found:
            raise re.error("\\p is not followed by a name in braces")
        try:
            ranges = category_ranges(found[2] or found[3])
        except KeyError:
            raise _TooRichError from None
        return len(found[0]), complement(ranges) if (letter == "P") != bool(found[1]) else ranges
    if letter.isalnum() and letter not in _PLAIN_ESCAPES:
        raise _TooRichError
    return 2, None


def _members(ranges: Ranges, last: int) -> str:
    """What goes between the brackets of a character class; ranges with nothing up to ``last`` match nothing there."""
    clipped = [(a, min(b, last)) for a, b in ranges if a <= last] or [(LAST, LAST)]
    return "".join(f"\\U{a:08x}" if a == b else f"\\U{a:08x}-\\U{b:08x}" for a, b in clipped)
