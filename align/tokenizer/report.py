"""How well a tokenizer suits a text."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from align.tokenizer.tokenizer import Tokenizer


class LongToken(NamedTuple):
    """A token among the longest in use."""

    text: str
    """What it says"""
    bytes: int
    """Its length, UTF-8 bytes"""
    uses: int
    """How often it occurs"""


class TokenizerReport(NamedTuple):
    """How a tokenizer encodes a text."""

    bytes: int
    """Length of the text, UTF-8 bytes"""
    tokens: int
    """Its length, tokens"""
    bytes_per_token: float
    """The first by the second"""
    tokens_used: int
    """Distinct ids that occur"""
    vocab_size: int
    """Ids there are"""
    longest: list[LongToken]
    """The longest tokens that occur, longest first, then commonest first"""


def report(tokenizer: Tokenizer, texts: Iterable[str], *, longest: int = 10, processes: int = 1) -> TokenizerReport:
    """Encode texts and measure.

    Args:
        tokenizer: to be judged.
        texts: read once.
        longest: how many of the longest tokens to name.
        processes: processes that encode.

    Raises:
        ValueError: there is no text.
    """
    ids, _ = tokenizer.encode_to_array(texts, processes=processes)
    if not len(ids):
        raise ValueError("no text to measure the tokenizer on: every text was empty")
    counts = np.bincount(ids, minlength=tokenizer.vocab_size)
    used = np.flatnonzero(counts)
    lengths = tokenizer.token_bytes
    ranking = used[np.lexsort((used, -counts[used], -lengths[used]))][:longest].tolist()
    size = int(counts @ lengths)
    return TokenizerReport(
        bytes=size,
        tokens=len(ids),
        bytes_per_token=size / len(ids),
        tokens_used=len(used),
        vocab_size=tokenizer.vocab_size,
        longest=[LongToken(tokenizer.token_text(i), int(lengths[i]), int(counts[i])) for i in ranking],
    )
