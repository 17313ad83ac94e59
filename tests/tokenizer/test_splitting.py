"""Words as other engines cut them, and the Unicode table behind it."""

import pytest
import regex
import tiktoken
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from align.tokenizer.public_patterns import CJK, DEEPSEEK3, DIGITS, LLAMA3, QWEN2, TEKKEN, TOTAL
from align.tokenizer.splitting import PATTERNS, Split, UnsupportedPatternError, resolve_pattern, split_words
from align.tokenizer.unicode16 import WHITE_SPACE, category, category_ranges, complement

O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ALL_PATTERNS = {**PATTERNS, "llama": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN, "deepseek": DEEPSEEK3, "o200k": O200K}
EVERY_CHAR = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]

_pieces = st.sampled_from(
    [
        "'s",
        "'LL",
        "'ſ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\x1c",
        "\u00a0",
        "\u3000",
        "a",
        "Zz",
        "é",
        "e\u0301",
        "7",
        "1234",
        "½",
        "٣",
    ]
    + ["漢字", "ǅ", "ʰ", "!", "--", "😀", "𝒳", "𝟘", "\U0001e900", "\U00020000", "\u1c89", "\U000e0001", "\0"]
)
_texts = st.one_of(st.text(), st.lists(_pieces).map("".join), st.text("ab 1'\n.!\t"))


def _tiktoken(pattern: str, text: str) -> str:
    """What tiktoken keeps of a text; with bytes as the only tokens it gives back what its pattern matched."""
    ranks = {bytes([i]): i for i in range(256)}
    peer = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return peer.decode(peer.encode_ordinary(text))


def _peer_words(peer, text: str) -> list[str]:
    return [word for word, _ in peer.pre_tokenize_str(text)]


def test_categories_equal_the_peers_on_all_of_unicode():
    """Oniguruma, the engine of tokenizers, takes exactly our members out of a text of all characters."""
    everything = "".join(EVERY_CHAR)
    for name in ("L", "N", "M"):
        outside = normalizers.Replace(Regex(rf"\p{{{name}}}+"), "").normalize_str(everything)
        inside = {chr(i) for first, last in category_ranges(name) for i in range(first, last + 1)}
        assert inside == set(EVERY_CHAR) - set(outside)
        assert all(category(char).startswith(name) for char in inside)


def test_every_category_equals_tiktoken():
    """tiktoken's engine drops what a pattern of one class does not match; 0.3 s for all classes."""
    everything = "".join(EVERY_CHAR)
    for name in sorted({category(char) for char in EVERY_CHAR} - {"Cn"}):
        members = "".join(chr(i) for first, last in category_ranges(name) for i in range(first, last + 1))
        assert _tiktoken(rf"\p{{{name}}}{{1,64}}", everything) == members


def test_white_space_equals_the_peers():
    members = "".join(chr(i) for first, last in WHITE_SPACE for i in range(first, last + 1))
    assert _tiktoken(r"\s+", "".join(EVERY_CHAR)) == members
    assert complement(complement(WHITE_SPACE)) == WHITE_SPACE


@pytest.mark.parametrize("name", ALL_PATTERNS)
@given(text=_texts)
def test_words_equal_tokenizers(name, text):
    peer = pre_tokenizers.Split(Regex(ALL_PATTERNS[name]), "isolated")
    assert split_words(text, (Split(ALL_PATTERNS[name]),)) == _peer_words(peer, text)


@pytest.mark.parametrize("name", sorted(ALL_PATTERNS.keys() - {"deepseek"}))  # which leaves gaps
@given(text=_texts)
def test_words_equal_regex_where_unicode_has_not_changed(name, text):
    """The `regex` package knows a newer Unicode; characters of another category there are out of the comparison."""
    text = "".join(char for char in text if regex.fullmatch(rf"\p{{{category(char)}}}", char))
    assert split_words(text, (Split(ALL_PATTERNS[name]),)) == regex.findall(ALL_PATTERNS[name], text)


@given(text=_texts)
def test_dropped_gaps_equal_tiktoken(text):
    """Removed and inverted in tokenizer.json: text that the pattern does not match is gone."""
    pattern = r"\p{N}{1,3}|\s+(?!\S)|[^\p{L}\s]+"
    assert "".join(split_words(text, (Split(pattern, keep_gaps=False),))) == _tiktoken(pattern, text)


@pytest.mark.parametrize("pattern", [r"\p{N}", r"[0-9]+", r"(a|b)c", r"a+?(?=b)", r"[\p{L}-]+", r"😀+"])
@given(text=_texts)
def test_gaps_are_words(pattern, text):
    """Isolated keeps what no alternative matches; the pieces join to the text."""
    words = split_words(text, (Split(pattern),))
    assert "".join(words) == text
    assert words == _peer_words(pre_tokenizers.Split(Regex(pattern), "isolated"), text)


@given(text=_texts)
def test_splits_in_a_row_equal_tokenizers(text):
    """As SmolLM (digits apart, then GPT-2) and DeepSeek (CJK runs apart)."""
    for patterns in ([r"\p{N}", PATTERNS["gpt2"]], [DIGITS, CJK, DEEPSEEK3]):
        peer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns])
        assert split_words(text, tuple(map(Split, patterns))) == _peer_words(peer, text)


@pytest.mark.parametrize("pattern", sorted(TOTAL))
@given(text=_texts)
def test_total_patterns_leave_no_gaps(pattern, text):
    assert "".join(split_words(text, (Split(pattern, keep_gaps=False),))) == text


def test_no_splits_is_one_word():
    assert split_words("a b", ()) == ["a b"]
    assert split_words("", ()) == []


@pytest.mark.parametrize("pattern", [r"(a", r"[a-", r"a**", r"\p{L", r"(?<x"])
def test_broken_patterns_are_refused(pattern):
    with pytest.raises(ValueError, match="pattern") as caught:
        resolve_pattern(pattern)
    assert repr(pattern) in str(caught.value)


DIVERGENT = [
    *(r"^a", r"\s++$", r"\w+", r"a\b", r"\h+", r"\R", r"\pL", r"\p{Han}+", r"\p{Letter}", r"\U00000061", r"\012"),
    *(r"[\p{L}--[a-z]]+", r"[a-z&&b]", r"[[:digit:]]", r"[]a]", r"[a||b]", r"[\p{L}-z]", r"[a-\p{L}]"),
    *(r"\p{N}{1,3}+", r"a{2}?", r"a{2}{3}", r"a{x}", r"(?=a)*b"),
    *(r"(?m)a", r"(?i)a", r"(?i:ss)", r"(?i:i)", r"(?i:é)", r"(?<name>a)", r"(?P<name>a)", r"(?#x)a", r"(a)\1"),
]


@pytest.mark.parametrize("pattern", DIVERGENT)
def test_what_engines_read_differently_is_refused(pattern):
    """An error rather than other ids."""
    with pytest.raises(UnsupportedPatternError, match="engines") as caught:
        resolve_pattern(pattern)
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize(
    "pattern", [r"\p{L}+|\p{N}{1,3}|", r"\p{L}*", r"\s?", "", "(?=a)", r"a?(?=b)", r"(a|)", r"a{0,3}"]
)
def test_patterns_that_can_match_nothing_are_refused(pattern):
    r"""`\p{L}+|\p{N}{1,3}|` on "ab 12345, x." would lose the blanks and the comma."""
    with pytest.raises(UnsupportedPatternError, match="match nothing") as caught:
        resolve_pattern(pattern)
    assert repr(pattern) in str(caught.value)


_atoms = st.sampled_from(
    [
        "a",
        "'",
        " ",
        r"\p{L}",
        r"\P{L}",
        r"\p{^Nd}",
        r"\p{Lu}",
        r"\s",
        r"\S",
        r"\d",
        r"\D",
        r"\n",
        r"\x41",
        r"\u00e9",
        "é",
        ".",
    ]
    + [r"[^\s\p{L}]", r"[a-z\p{N}-]", r"[^\P{L}]", r"[\r\n]", r"(?i:'[sdm]|ll|ve|re)", r"\.", "😀", r"[一-龥]"]
)
_quantified = st.tuples(
    _atoms, st.sampled_from(["", "", "?", "*", "+", "?+", "*+", "++", "??", "*?", "+?", "{2}", "{1,3}", "{2,}"])
)
_after = st.sampled_from(["", "", "", r"(?!\S)", r"(?=a)", r"(?<=\s)", r"(?<!a)"])
_alternatives = st.tuples(st.lists(_quantified, min_size=1, max_size=3), _after)
_patterns = st.lists(_alternatives, min_size=1, max_size=3).map(
    lambda choices: "|".join("".join(a + q for a, q in parts) + after for parts, after in choices)
)


@settings(max_examples=150)
@given(pattern=_patterns, text=_texts)
def test_accepted_patterns_agree_with_tokenizers(pattern, text):
    """Patterns made of all syntax that is accepted; those that can match nothing are left out."""
    try:
        words = split_words(text, (Split(pattern),))
    except UnsupportedPatternError:
        assume(False)
    assert words == _peer_words(pre_tokenizers.Split(Regex(pattern), "isolated"), text)
