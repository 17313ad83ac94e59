r"""Split text into words with the regular expressions of tokenizer files.

These expressions are written for engines that support ``\p{L}``. Python's ``re`` does not, but runs two to three times
as fast as the ``regex`` package, so each expression is rewritten with explicit character ranges:

1. ``\p{..}``, ``\s`` and ``\d`` become ranges of Unicode 16.0 (see unicode16.py).
2. The ranges are clipped to the characters of the text: ASCII, the basic plane, or all of Unicode. The size of a text
   tells which, and for the first two ``re`` tests membership with a single lookup.
3. For all of Unicode it searches hundreds of ranges. So if a text has characters beyond the basic plane (emoji), each
   is first replaced by a character of the basic plane with the same category. The boundaries apply to the original.
4. Text that no alternative matches is a word too ("Isolated" in tokenizer files), so nothing is lost.

Only syntax that ``re`` and Oniguruma, the engine of Hugging Face's ``tokenizers``, read the same way is accepted; all
else raises `UnsupportedPatternError`: ``\w``, ``\b``, scripts, set operations, inline flags, anchors, possessive or
lazy counts (``{1,3}+``), and expressions that can match nothing.
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
_NAMED_CHAR = re.compile(r"\\[xu]")
_PLAIN_ESCAPE = re.compile(r"\\(?:[nrtfva]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^0-9A-Za-z_])", re.DOTALL)
_QUANTIFIER = re.compile(r"\{(?:[0-9]+(?:,[0-9]*)?|,[0-9]+)\}")
_PROPERTY = re.compile(r"\\[pP]\{(\^?)([A-Z][a-z]?)\}")
_GROUPS = ("(?:", "(?>", "(?=", "(?!", "(?<=", "(?<!")
_ASSERTIONS = frozenset(_GROUPS[2:])
# Engines differ on letters whose folded form is longer (ss and \xdf) or depends on the language (i).
_FOLDED_GROUP = re.compile(r"\(\?i:((?:'|\||[a-hj-zA-HJ-Z]|\[[a-hj-zA-HJ-Z]+\])*)\)")
_LONG_FOLDS = re.compile("ff|fi|fl|ss|st", re.IGNORECASE)


class Split(NamedTuple):
    """One step of splitting.

    Attributes:
        pattern: the regular expression, as in tokenizer.json.
        keep_gaps: whether text between matches is a word (tokenizer.json: Isolated) or dropped (Removed, inverted).
    """

    pattern: str
    keep_gaps: bool = True


class UnsupportedPatternError(ValueError):
    """The expression uses syntax that engines read differently, or that `re` does not have."""

    def __init__(self, pattern: str, reason: str) -> None:
        """Name the expression and what is wrong with it."""
        super().__init__(f"split pattern {pattern!r} {reason}")


def resolve_pattern(pattern: str) -> str:
    """The regular expression of a name in `PATTERNS`, or the expression itself.

    Raises:
        UnsupportedPatternError: it does not compile, or engines read it differently.
    """
    expression = PATTERNS.get(pattern, pattern)
    check_splits((Split(expression),))
    return expression


def check_splits(splits: tuple[Split, ...]) -> None:
    """Raise UnsupportedPatternError unless every expression can be rewritten."""
    for split in splits:
        _findall(split, _ASCII)


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
    expression, skeleton = _translate(split.pattern, last)
    try:
        if re.fullmatch(skeleton, "") is not None:
            raise UnsupportedPatternError(split.pattern, "can match nothing, which engines treat differently")
        if split.keep_gaps and split.pattern not in PATTERNS.values():
            expression += rf"|(?:(?!{expression})[\s\S])+"
        return re.compile(expression).findall
    except re.error as error:
        raise UnsupportedPatternError(split.pattern, f"does not compile: {error}") from None


def _translate(pattern: str, last: int) -> tuple[str, str]:
    """Rewrite an expression for ``re``, with ranges clipped to code points up to ``last`` and no capturing groups.

    Returns:
        tuple[str, str]: the expression, and the same without lookaround assertions: if that matches the empty text, the
        expression may match nothing.

    Raises:
        UnsupportedPatternError: it uses anything that ``re`` and Oniguruma read differently.
    """
    out: list[str] = []
    skeleton: list[str] = []
    opened: list[bool] = []  # groups around this position: whether each is an assertion
    position = 0

    def add(text: str) -> None:
        out.append(text)
        if True not in opened:
            skeleton.append(text)

    def unsupported(construct: str) -> UnsupportedPatternError:
        return UnsupportedPatternError(pattern, f"uses {construct!r}, which engines read differently")

    while position < len(pattern):
        char = pattern[position]
        if char == "\\":
            found, ranges = _escape(pattern, position)
            add(found if ranges is None else f"[{_members(ranges, last)}]")
            position += len(found)
        elif char == "[":
            members, position = _class(pattern, position, last)
            add(members)
        elif char == "(":
            if folded := _FOLDED_GROUP.match(pattern, position):
                if _LONG_FOLDS.search(folded[1]):
                    raise unsupported(folded[0])
                add(folded[0])
                position = folded.end()
                continue
            group = next((g for g in _GROUPS if pattern.startswith(g, position)), None)
            if group is None and pattern.startswith("(?", position):
                raise unsupported(pattern[position : position + 4])
            group = group or "("
            position += len(group)
            opening = "(?:" if group == "(" else group
            if group in _ASSERTIONS:
                opened.append(True)
                out.append(opening)
            else:
                add(opening)
                opened.append(False)
        elif char == ")":
            if not opened:
                raise UnsupportedPatternError(pattern, "does not compile: unbalanced parenthesis")
            assertion = opened.pop()
            position += 1
            if assertion:
                out.append(")")
                if pattern[position : position + 1] in ("*", "+", "?", "{"):
                    raise unsupported("a repeated assertion")
            else:
                add(")")
        elif char == "{":
            count = _QUANTIFIER.match(pattern, position)
            if count is None or pattern[count.end() : count.end() + 1] in ("+", "?", "*", "{"):
                raise unsupported(pattern[position : count.end() + 1 if count else position + 1])
            add(count[0])
            position = count.end()
        elif char in "^$":
            raise unsupported(char)
        else:
            add(char)
            position += 1
    if opened:
        raise UnsupportedPatternError(pattern, "does not compile: missing )")
    return "".join(out), "".join(skeleton)


def _class(pattern: str, start: int, last: int) -> tuple[str, int]:
    """A character class that begins at ``start``, rewritten, and the position after it."""
    out = [head := "[^" if pattern.startswith("[^", start) else "["]
    position = start + len(head)
    while (char := pattern[position : position + 1]) != "]" or len(out) == 1:
        if char in ("", "[", "]") or pattern[position : position + 2] in ("&&", "--", "||", "~~"):
            raise UnsupportedPatternError(
                pattern, f"uses {pattern[start : position + 2]!r}, which engines read differently"
            )
        if char == "\\":
            found, ranges = _escape(pattern, position)
            position += len(found)
            ends_range = out[-1] == "-" and len(out) > 2
            starts_range = pattern.startswith("-", position) and not pattern.startswith("-]", position)
            if ranges is not None and (ends_range or starts_range):
                raise UnsupportedPatternError(
                    pattern, f"uses {found!r} beside '-' in a class, which engines read differently"
                )
            out.append(found if ranges is None else _members(ranges, last))
        else:
            out.append(char)
            position += 1
    return "".join(out) + "]", position + 1


def _escape(pattern: str, position: int) -> tuple[str, Ranges | None]:
    """The escape at ``position``, and its code points; None if ``re`` reads it the same way."""
    letter = pattern[position + 1 : position + 2]
    if letter in _CLASSES:
        return pattern[position : position + 2], _CLASSES[letter]()
    if found := _PROPERTY.match(pattern, position):
        try:
            ranges = category_ranges(found[2])
        except KeyError:
            raise UnsupportedPatternError(pattern, f"uses the unknown category {found[0]!r}") from None
        return found[0], complement(ranges) if (letter == "P") != bool(found[1]) else ranges
    if plain := _PLAIN_ESCAPE.match(pattern, position):
        return plain[0], None
    raise UnsupportedPatternError(pattern, f"uses {pattern[position : position + 2]!r}, which engines read differently")


_CLASSES: dict[str, Callable[[], Ranges]] = {
    "s": lambda: WHITE_SPACE,
    "S": lambda: complement(WHITE_SPACE),
    "d": lambda: category_ranges("Nd"),
    "D": lambda: complement(category_ranges("Nd")),
}


def _members(ranges: Ranges, last: int) -> str:
    """The inside of a character class; ranges that begin after ``last`` match nothing in such a text."""
    clipped = [(a, min(b, last)) for a, b in ranges if a <= last] or [(LAST, LAST)]
    return "".join(f"\\U{a:08x}" if a == b else f"\\U{a:08x}-\\U{b:08x}" for a, b in clipped)
