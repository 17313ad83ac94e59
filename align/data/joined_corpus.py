"""Several corpora as one, so that a row can come from any of them.

Legend: N tokens of all parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.data.corpus import Corpus, corpus_key


class CorpusPart(NamedTuple):
    """Adjacent documents of a corpus.

    Attributes:
        corpus: the corpus.
        bounds: ``[documents + 1]`` int64, offsets of the documents.
        records: the records with these documents, as ``Corpus.prompt`` counts them.
    """

    corpus: Corpus
    bounds: np.ndarray
    records: range


class ChainedArray:
    """Arrays one after the other, read by index arrays and slices as if they were a single one, without copying it."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        """Chain one-dimensional arrays of one dtype."""
        self.arrays = list(arrays)
        self.dtype = self.arrays[0].dtype
        self._ends = np.cumsum([len(array) for array in self.arrays])

    def __len__(self) -> int:
        """N."""
        return int(self._ends[-1])

    def __getitem__(self, key: np.ndarray | slice) -> np.ndarray:
        """The values at indices ``[...]`` of at least 0, or of a slice."""
        indices = np.arange(*key.indices(len(self))) if isinstance(key, slice) else np.asarray(key)
        part = np.searchsorted(self._ends, indices, side="right")
        values = np.empty(indices.shape, self.dtype)
        for number in np.unique(part):
            chosen = part == number
            array = self.arrays[number]
            values[chosen] = array[indices[chosen] - (self._ends[number] - len(array))]
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All values, copied."""
        return np.concatenate(self.arrays).astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True)
class JoinedCorpus(Corpus):
    """Parts of several corpora, with documents and records numbered over all of them."""

    parts: tuple[CorpusPart, ...]
    """At least one"""

    @classmethod
    def of(cls, parts: Sequence[CorpusPart]) -> "JoinedCorpus":
        """Join parts of corpora that one tokenizer wrote with one set of settings."""

        def chained(name: str) -> Any:
            arrays = [getattr(part.corpus, name) for part in parts]
            if arrays[0] is None:
                return None
            slices = [slice(part.bounds[0], part.bounds[-1]) for part in parts]
            return ChainedArray([array[one] for array, one in zip(arrays, slices, strict=True)])

        sizes = [int(part.bounds[-1] - part.bounds[0]) for part in parts]
        begins = [0, *accumulate(sizes)]
        offsets = [begin + part.bounds[:-1] - part.bounds[0] for begin, part in zip(begins, parts, strict=False)]
        return cls(
            path=Path(),
            ids=chained("ids"),
            offsets=np.concatenate([*offsets, [begins[-1]]]),
            target_mask=chained("target_mask"),
            prompt_bytes=None,
            prompt_offsets=None,
            labels=_joined_labels(parts),
            meta={
                "report": [line for part in parts for line in part.corpus.meta["report"]],
                "truncation": _summed([part.corpus.meta.get("truncation", {}) for part in parts]),
            },
            parts=tuple(parts),
        )

    @property
    def identity(self) -> str:
        """What decides the tokens: the names of the corpora and the tokens taken of each."""
        return "joined-" + corpus_key(
            parts=[[part.corpus.identity, int(part.bounds[0]), int(part.bounds[-1])] for part in self.parts]
        )

    @cached_property
    def documents(self) -> np.ndarray:
        """``[parts + 1]`` int64, index of each part's first document, and the number of documents."""
        return np.cumsum([0, *(len(part.bounds) - 1 for part in self.parts)])

    def part_of(self, tokens: np.ndarray) -> np.ndarray:
        """The part of each of some tokens, which are indices in ``ids``."""
        ends = self.offsets[self.documents[1:]]
        return np.searchsorted(ends, tokens, side="right")

    def prompt(self, record: int) -> Any:
        """The stored prompt of a record."""
        for part in self.parts:
            if record < len(part.records):
                return part.corpus.prompt(part.records[record])
            record -= len(part.records)
        raise IndexError("there is no such record")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the parts, whose corpora are pickled as their paths."""
        return JoinedCorpus.of, (self.parts,)


def _joined_labels(parts: Sequence[CorpusPart]) -> np.ndarray | None:
    records = [(part.corpus.labels, part.records) for part in parts]
    known = [labels[where.start : where.stop] for labels, where in records if labels is not None]
    return np.concatenate(known) if known else None


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    names = {name: None for one in counts for name in one}
    return {name: sum(one.get(name, 0) for one in counts) for name in names}
