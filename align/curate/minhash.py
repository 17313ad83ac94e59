"""Near duplicates by MinHash (Broder 1997) with banding (Leskovec, Rajaraman and Ullman 2014, chapter 3).

1. A text is the set of its runs of ``WORDS`` consecutive words, each hashed to 64 bits.
2. Its signature is the minimum of the set under each of ``BANDS * ROWS`` hash functions.
3. Texts that agree in a whole band of their signatures are candidates: at a Jaccard similarity of 0.8, 99% of pairs.
4. A candidate counts if the Jaccard similarity of the two sets, which is computed, reaches the threshold.
"""

import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WORDS = 3
BANDS, ROWS = 9, 4

_WORD = re.compile(r"\w+")
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Shingles(NamedTuple):
    """The sets of hashed word runs of texts.

    Attributes:
        values: ``[n]`` uint64, sorted and distinct within each text.
        offsets: ``[texts + 1]`` int64: text t has ``values[offsets[t]:offsets[t + 1]]``; nothing if it is too short.
    """

    values: np.ndarray
    offsets: np.ndarray

    def of(self, text: int) -> np.ndarray:
        """The set of a text."""
        return self.values[self.offsets[text] : self.offsets[text + 1]]


def near_duplicates(texts: Sequence[str], *, threshold: float) -> np.ndarray:
    """Group texts that resemble each other.

    Args:
        texts: any number.
        threshold: least Jaccard similarity of two texts' sets of word runs, in (0, 1].

    Returns:
        ``[texts]`` int64: index of the first text of each one's group; its own where it resembles none before it.
    """
    parents = np.arange(len(texts))
    shingles = shingles_of(texts)
    counts = np.diff(shingles.offsets)
    usable = np.flatnonzero(counts)
    if len(usable) < 2:
        return parents
    signatures = _signatures(shingles, usable)
    seen: set[tuple[int, int]] = set()
    for band in range(BANDS):
        keys = np.ascontiguousarray(signatures[:, band * ROWS : (band + 1) * ROWS])
        _, inverse = np.unique(keys.view([("", keys.dtype)] * ROWS).ravel(), return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(inverse[order]) > 0])
        for group in np.split(order, starts[1:]):
            if len(group) < 2:
                continue
            # Compared with the first of the bucket and the one before: linear in the size of the bucket.
            members = usable[group].tolist()
            for before, member in zip(members, members[1:], strict=False):
                for other in {members[0], before}:
                    if (other, member) in seen or _root(parents, other) == _root(parents, member):
                        continue
                    seen.add((other, member))
                    if _jaccard(shingles.of(other), shingles.of(member)) >= threshold:
                        low, high = sorted((_root(parents, other), _root(parents, member)))
                        parents[high] = low
    return np.array([_root(parents, text) for text in range(len(texts))], np.int64)


def shingles_of(texts: Sequence[str]) -> Shingles:
    """The sets of hashed word runs, without regard to case and punctuation.

    Args:
        texts: any number; one of fewer than ``WORDS`` words has an empty set.
    """
    known: dict[str, int] = {}
    parts, lengths = [], [0]
    for text in texts:
        words = _WORD.findall(text.lower())
        if len(words) < WORDS:
            lengths.append(0)
            continue
        for word in words:
            if word not in known:
                known[word] = zlib.crc32(word.encode("utf-8", "replace"))
        codes = np.array([known[word] for word in words], np.uint64)
        mixed = codes[: len(codes) - WORDS + 1].copy()
        for shift in range(1, WORDS):
            mixed = _mixed(mixed * _MIX + codes[shift : len(codes) - WORDS + 1 + shift])
        values = np.unique(mixed)
        parts.append(values)
        lengths.append(len(values))
    values = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    return Shingles(values, np.cumsum(lengths))


def _signatures(shingles: Shingles, usable: np.ndarray) -> np.ndarray:
    """``[usable, BANDS * ROWS]`` uint64."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 1 << 63, BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    starts = shingles.offsets[usable]
    columns = [np.minimum.reduceat(_mixed(shingles.values * factor), starts) for factor in factors]
    return np.stack(columns, axis=1)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014), which spreads every bit over all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _jaccard(left: np.ndarray, right: np.ndarray) -> float:
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / (len(left) + len(right) - common)


def _root(parents: np.ndarray, text: int) -> int:
    while parents[text] != text:
        parents[text] = parents[parents[text]]
        text = int(parents[text])
    return text
