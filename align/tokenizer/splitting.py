r"""Split text into words with the regular expressions of tokenizer files.

These expressions are written for engines that support ``\p{L}``. Python's ``re`` does not, but runs two to three times
as fast as the ``regex`` package, so each expression is rewritten with explicit character ranges:

1. ``\p{..}``, ``\s`` and ``\d`` become ranges of Unicode 16.0 (see unicode16.py).
2. The ranges are clipped to the characters of the text: ASCII, the basic plane, or all of Unicode. The size of a text
   tells which, and for the first two ``re`` tests membership with a single lookup.
3. For all of Unicode it searches hundreds of ranges. So if a text has characters beyond the basic plane (emoji), each
   is first replaced by a character of the basic plane with the same category. The boundaries apply to the original.
4. Text that no alternative matches is a word too ("Isolated" in tokenizer files), so nothing is lost.

Expressions with more than this (``\w``, ``\b``, scripts, set operations) are left to the ``regex`` package.
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
"""Split patterns by name. Both match every character of any text."""

_ASCII, _BASIC = 0x7F, 0xFFFF
_BEYOND_BASIC = re.compile("[\U00010000-\U0010ffff]")
_NAMED_CHAR = re.compile(r"\\[xuU]")
_PLAIN_ESCAPES = frozenset("nrtfvax") | frozenset("uU0")
_GROUPS = ("(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:")


class Split(NamedTuple):
    """One step of splitting.

    Attributes:
        pattern: the regular expression, as in tokenizer.json.
        keep_gaps: whether text between matches is a word (tokenizer.json: Isolated) or dropped (Removed, inverted).
    """

    pattern: str
    keep_gaps: bool = True


class _TooRichError(Exception):
    """The expression uses something that `_translate` does not rewrite."""


def resolve_pattern(pattern: str) -> str:
    """The regular expression of a name in `PATTERNS`, or the expression itself.

    Raises:
        ValueError: it does not compile.
    """
    expression = PATTERNS.get(pattern, pattern)
    _findall(Split(expression), _ASCII)
    return expression


def split_words(text: str, splits: tuple[Split, ...]) -> list[str]:
    """Apply each split in turn; without splits the text is one word."""
    if not splits:
        return [text] if text else []
    if text.isascii():
        return _split(text, splits, _ASCII)
    if len(text.encode("utf-16-le", "surrogatepass")) == 2 * len(text):
        return _split(text, splits, _BASIC)
    if not all(
        split.keep_gaps and split.pattern.isascii() and not _NAMED_CHAR.search(split.pattern) for split in splits
    ):
        return _split(text, splits, LAST)  # the pattern may distinguish characters within a category, or drop some
    lengths = map(len, _split(_BEYOND_BASIC.sub(_stand_in, text), splits, _BASIC))
    return [text[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]


def _split(text: str, splits: tuple[Split, ...], last: int) -> list[str]:
    words = _findall(splits[0], last)(text)
    for split in splits[1:]:
        words = list(chain.from_iterable(map(_findall(split, last), words)))
    return words


def _stand_in(match: re.Match[str]) -> str:
    return _stand_in_of(match.group())


@lru_cache(maxsize=4096)
def _stand_in_of(char: str) -> str:
    """The last character of the basic plane with the same category, which no expression names."""
    return chr(next(b for _, b in reversed(category_ranges(category(char))) if b <= _BASIC))


@lru_cache(maxsize=64)
def _findall(split: Split, last: int) -> Callable[[str], list[str]]:
    """``findall`` of the compiled expression, for texts with code points up to ``last``."""
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
    """Like `_findall`, with the `regex` package."""
    import regex

    try:
        gaps = rf"|(?:(?!{split.pattern})[\s\S])+" if split.keep_gaps else ""
        find = regex.compile(split.pattern + gaps).finditer
    except regex.error as error:
        raise ValueError(f"split pattern {split.pattern!r} does not compile: {error}") from None
    return lambda text: [match.group() for match in find(text)]


def _translate(pattern: str, last: int) -> str:
    """Rewrite an expression for ``re``, with ranges clipped to code points up to ``last`` and no capturing groups."""
    out: list[str] = []
    position, inside = 0, False
    while position < len(pattern):
        char = pattern[position]
        if char == "\\":
            step, ranges = _escape(pattern, position)
            if ranges is None:
                out.append(pattern[position : position + step])
            else:
                out.append(_members(ranges, last) if inside else f"[{_members(ranges, last)}]")
            position += step
            continue
        if inside:
            if char == "[" or pattern.startswith("&&", position):
                raise _TooRichError
            inside = char != "]"
        elif char == "[":
            inside = True
            head = re.compile(r"\[\^?\]?").match(pattern, position)
            assert head is not None
            out.append(head.group())
            position = head.end()
            continue
        elif char == "(":
            group = next((g for g in _GROUPS if pattern.startswith(g, position)), None)
            if group is None and pattern.startswith("(?", position):
                raise _TooRichError
            out.append(group or "(?:")
            position += len(group or "(")
            continue
        elif char in "^$":
            # Engines disagree on whether these match at lines or at the ends of the text.
            raise ValueError(f"split pattern {pattern!r} uses {char!r}, which is not supported")
        out.append(char)
        position += 1
    return "".join(out)


def _escape(pattern: str, position: int) -> tuple[int, Ranges | None]:
    """Length of the escape at ``position``, and its code points; None if ``re`` reads it the same way."""
    letter = pattern[position + 1 : position + 2]
    if letter in ("s", "S"):
        return 2, WHITE_SPACE if letter == "s" else complement(WHITE_SPACE)
    if letter in ("d", "D"):
        return 2, category_ranges("Nd") if letter == "d" else complement(category_ranges("Nd"))
    if letter in ("p", "P"):
        found = re.compile(r"\\[pP](?:\{(\^?)([^{}]+)\}|([A-Z]))").match(pattern, position)
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
    """The inside of a character class; ranges that begin after ``last`` match nothing in such a text."""
    clipped = [(a, min(b, last)) for a, b in ranges if a <= last] or [(LAST, LAST)]
    return "".join(f"\\U{a:08x}" if a == b else f"\\U{a:08x}-\\U{b:08x}" for a, b in clipped)
