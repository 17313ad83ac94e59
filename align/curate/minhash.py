"""Near duplicates by MinHash (Broder 1997) with banding (Leskovec, Rajaraman and Ullman 2014, chapter 3).

1. A text is the set of its runs of ``WORDS`` consecutive words, each hashed to 64 bits.
2. Its signature is the minimum of the set under each of ``BANDS * ROWS`` hash functions.
3. Texts that agree in a whole band of their signatures are candidates: at a Jaccard similarity of 0.8, 99% of pairs.
4. A candidate counts if the Jaccard similarity of the two sets, which is computed, reaches the threshold.
"""

import itertools
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


class Sketch(NamedTuple):
    """What of texts is compared.

    Attributes:
        shingles: their sets of hashed word runs.
        signatures: ``[texts, BANDS * ROWS]`` uint64; 0 for a text that is too short.
    """

    shingles: Shingles
    signatures: np.ndarray


def sketch(texts: Sequence[str]) -> Sketch:
    """Steps 1 and 2.

    Args:
        texts: any number.
    """
    shingles = shingles_of(texts)
    return Sketch(shingles, _signatures(shingles))


def joined(first: Sketch, second: Sketch) -> Sketch:
    """The sketch of all texts of both."""
    values = np.concatenate([first.shingles.values, second.shingles.values])
    offsets = np.concatenate([first.shingles.offsets, second.shingles.offsets[1:] + len(first.shingles.values)])
    return Sketch(Shingles(values, offsets), np.concatenate([first.signatures, second.signatures]))


def near_duplicates(texts: Sketch, *, threshold: float) -> np.ndarray:
    """Group texts that resemble each other: steps 3 and 4.

    Args:
        texts: their sketch.
        threshold: least Jaccard similarity of two texts' sets of word runs, in (0, 1].

    Returns:
        ``[texts]`` int64: index of the first text of each one's group; its own where it resembles none before it.
    """
    shingles, signatures = texts
    parents = np.arange(len(signatures))
    usable = np.flatnonzero(np.diff(shingles.offsets))
    seen: set[tuple[int, int]] = set()
    for band in range(BANDS):
        for bucket in _buckets(signatures[usable, band * ROWS : (band + 1) * ROWS]):
            # Compared with the first of the bucket and the one before: linear in the size of the bucket.
            members = usable[bucket].tolist()
            for before, member in itertools.pairwise(members):
                for other in {members[0], before}:
                    low, high = sorted((_root(parents, other), _root(parents, member)))
                    if low == high or (other, member) in seen:
                        continue
                    seen.add((other, member))
                    if _jaccard(shingles.of(other), shingles.of(member)) >= threshold:
                        parents[high] = low
    return np.array([_root(parents, text) for text in range(len(parents))], np.int64)


def _buckets(band: np.ndarray) -> list[np.ndarray]:
    """Rows that are equal: indices of each group of at least two, ascending."""
    order = np.lexsort(band.T)
    same = (band[order[1:]] == band[order[:-1]]).all(axis=1)
    groups = np.split(order, np.flatnonzero(~same) + 1)
    return [np.sort(group) for group in groups if len(group) > 1]


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


def _signatures(shingles: Shingles) -> np.ndarray:
    usable = np.flatnonzero(np.diff(shingles.offsets))
    signatures = np.zeros((len(shingles.offsets) - 1, BANDS * ROWS), np.uint64)
    if len(usable):
        rng = np.random.default_rng(0)
        factors = rng.integers(0, 1 << 63, BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        starts = shingles.offsets[usable]
        for column, factor in enumerate(factors):
            signatures[usable, column] = np.minimum.reduceat(_mixed(shingles.values * factor), starts)
    return signatures


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
