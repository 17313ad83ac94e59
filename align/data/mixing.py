"""Weighted mixtures of sources: which source each row of the training order comes from.

Shares are of rows, the unit that batches and steps count. Where rows are packed they are all ``context + 1`` tokens
long, so shares of rows are shares of tokens, up to padding; a pair or a prompt is one example whatever its length.

Legend: S sources, R rows of a source, n rows of the mixture, B rows of a step on all ranks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from align.data.collate import Batch, BatchDataset
from align.data.sampler import PRODUCT, SORTED_BATCHES, ResumableLoader

EpochEnd = Literal["longest", "shortest"]

_LEAST_SHARE = 1e-9
"""Smallest share of a source; an epoch in which a smaller one is read could not be counted in float64"""


@dataclass(frozen=True)
class WeightedSource:
    """Files that make up a share of the training rows.

    Args:
        files: File, glob, Hub id (owner/name:split) or a list of them
        weight: Share of the rows, relative to the other sources' weights; they need not add up to 1
        name: Name in reports; None: that of the first file
    """

    files: str | list[str]
    weight: float = 1.0
    name: str | None = None

    @property
    def label(self) -> str:
        """Its name in reports."""
        first = self.files if isinstance(self.files, str) else self.files[0]
        return self.name or Path(first).name


Files: TypeAlias = str | list[str | WeightedSource]
"""What ``train`` takes: files that are concatenated, or sources with weights"""


def files_of(train: str | Sequence[str | WeightedSource]) -> list[str]:
    """All files of ``train``, without their weights."""
    files: list[str] = []
    for one in [train] if isinstance(train, str) else train:
        if isinstance(one, str):
            files.append(one)
        else:
            files += files_of(one.files)
    return files


def weighted_sources(train: Files) -> list[WeightedSource]:
    """The sources with weights that ``train`` is a list of; none if it is files.

    Raises:
        ValueError: some entries are sources and others are not, or a source has no files or an impossible weight.
    """
    sources = [] if isinstance(train, str) else [one for one in train if isinstance(one, WeightedSource)]
    if sources and len(sources) < len(train):
        raise ValueError(
            f"train has {len(train)} entries, but only {len(sources)} of them have files and weight; give each one both"
        )
    for source in sources:
        if not source.files:
            raise ValueError(f"train: files of the source with weight {source.weight} is {source.files!r}; name a file")
        if not (math.isfinite(source.weight) and source.weight > 0):
            raise ValueError(f"train: weight of {source.label} is {source.weight}; it must be above 0")
    return sources


@dataclass(frozen=True)
class Mixture:
    """An endless sequence of sources in which every prefix has the shares of the weights, to within a few rows.

    Row j of source s is due at ``(j + 1/2) / w_s``, and rows come in the order in which they are due: the Webster
    (Sainte-Laguë) divisor method. So the sequence is a pure function of the weights.
    """

    names: tuple[str, ...]
    """Name of each source"""
    weights: tuple[float, ...]
    """Share of each source; they sum to 1"""

    @classmethod
    def of(cls, sources: Sequence[WeightedSource]) -> "Mixture":
        """The mixture of some sources.

        Raises:
            ValueError: two sources have the same name, or a share is too small.
        """
        names = [source.label for source in sources]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"train has two sources named {repeated[0]!r}; set name of one of them")
        total = math.fsum(source.weight for source in sources)
        for source in sources:
            if source.weight / total < _LEAST_SHARE:
                raise ValueError(
                    f"train: weight of {source.label} is {source.weight} of {total} in all; its share must be at least "
                    f"{_LEAST_SHARE:g}, as it would have no row in a run; raise it or remove the source"
                )
        return cls(tuple(names), tuple(source.weight / total for source in sources))

    def counts(self, n: int) -> np.ndarray:
        """Rows of each source among the first ``n``: ``[S]`` int64."""
        # Of the rows due before T there are T, give or take S / 2: all rows due before n - S are among the first n.
        done = np.array([self._due_before(weight, n - len(self.weights)) for weight in self.weights])
        return done + np.bincount(self._next(done, n - int(done.sum())), minlength=len(done))

    def sources(self, first: int, last: int) -> np.ndarray:
        """The source of the rows ``first`` to ``last - 1``: ``[last - first]`` int64."""
        return self._next(self.counts(first), last - first)

    def _due_before(self, weight: float, time: float) -> int:
        """Number of rows of a source that are due before ``time``."""
        number = max(0, math.ceil(weight * time - 0.5))
        while number and (number - 0.5) / weight >= time:  # what rounding got wrong
            number -= 1
        return number

    def _next(self, done: np.ndarray, size: int) -> np.ndarray:
        """The sources of the ``size`` rows that come after the first ``done`` ``[S]`` rows of each source."""
        most = [math.ceil(weight * size) + len(done) + 1 for weight in self.weights]
        due = [
            (row + np.arange(rows) + 0.5) / weight
            for row, rows, weight in zip(done.tolist(), most, self.weights, strict=True)
        ]
        source = np.repeat(np.arange(len(done)), most)
        return source[np.argsort(np.concatenate(due), kind="stable")[:size]]


class SourceTally:
    """Rows and tokens that were delivered of each source, on all ranks together."""

    def __init__(self, mixture: Mixture) -> None:
        """Start with nothing delivered."""
        self.mixture = mixture
        self.rows = np.zeros(len(mixture.names), np.int64)
        """``[S]``"""
        self.tokens = np.zeros_like(self.rows)
        """``[S]``, without padding"""

    def add(self, sources: np.ndarray, tokens: np.ndarray) -> None:
        """Count rows.

        Args:
            sources: ``[n]`` source of each row.
            tokens: ``[n]`` tokens of each row.
        """
        self.rows += np.bincount(sources, minlength=len(self.rows))
        self.tokens += np.bincount(sources, tokens, minlength=len(self.rows)).astype(np.int64)

    def state_dict(self) -> dict[str, list[int]]:
        """The counts."""
        return {"rows": self.rows.tolist(), "tokens": self.tokens.tolist()}

    def load_state_dict(self, state: Mapping[str, list[int]]) -> None:
        """Continue from the counts of a checkpoint."""
        self.rows, self.tokens = np.array(state["rows"]), np.array(state["tokens"])

    def lines(self) -> Iterator[str]:
        """A line for each source: its share of the rows and of the tokens."""
        for name, weight, rows, tokens in zip(
            self.mixture.names, self.mixture.weights, self.rows.tolist(), self.tokens.tolist(), strict=True
        ):
            yield (
                f"read {name}: {rows / max(1, self.rows.sum()):.1%} of the rows (weight {weight:.1%}), "
                f"{tokens / max(1, self.tokens.sum()):.1%} of the tokens; {rows:,} rows, {tokens:,} tokens"
            )


_SAMPLE = 1024
"""Batches in a sample: an epoch of a mixture with a small weight can be long"""


@dataclass(frozen=True)
class MixedOrder:
    """The training batches of a mixture, for one rank, as ``BatchOrder`` has those of a single source.

    Each source is shuffled again in each of its own passes, and one that runs out starts its next pass. An epoch is a
    number of steps of this endless sequence. The rows of a step are shuffled, so that no rank gets one source only.
    """

    mixture: Mixture
    """Which source each row comes from"""
    sizes: tuple[int, ...]
    """``[S]`` rows of each source; the rows of the data set are those of source 0, then those of source 1, ..."""
    batch_size: int
    """Rows of a batch on one rank"""
    seed: int
    """Seed of the shuffling"""
    ends: EpochEnd = "longest"
    """Whether an epoch ends when every source has been read, or before one repeats"""
    ranks: int = 1
    """Number of data-parallel ranks"""
    rank: int = 0
    """Index of this rank"""
    widths: np.ndarray | None = None
    """``[sum of sizes]`` tokens of each row, if rows of similar length should share a batch; else None"""

    def __len__(self) -> int:
        """Steps of an epoch, at least 1."""
        return self._steps

    @cached_property
    def _steps(self) -> int:
        step, sizes, weights = self.batch_size * self.ranks, np.array(self.sizes), np.array(self.mixture.weights)
        slack = len(sizes)  # a row comes at most S / 2 rows before or after it is due
        if self.ends == "longest":
            steps = max(1, math.floor((((sizes - 0.5) / weights).max() - slack) / step))
            return next(number for number in count(steps) if (self.mixture.counts(number * step) >= sizes).all())
        steps = max(1, math.ceil((((sizes + 0.5) / weights).min() + slack) / step))
        fits = (number for number in range(steps, 0, -1) if (self.mixture.counts(number * step) <= sizes).all())
        return next(fits, 1)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the order."""
        return {
            "rows of each source": list(self.sizes),
            "weights": list(self.mixture.weights),
            "epoch": self.ends,
            PRODUCT: self.batch_size * self.ranks,
            "seed": self.seed,
        }

    def passes(self) -> np.ndarray:
        """``[S]`` float64, passes over each source in an epoch."""
        rows: np.ndarray = self.mixture.counts(len(self) * self.batch_size * self.ranks)
        return rows / np.array(self.sizes)

    def source_of(self, rows: np.ndarray) -> np.ndarray:
        """The source of each of some rows."""
        return np.searchsorted(np.cumsum(self.sizes), rows, side="right")

    def sample(self) -> np.ndarray:
        """This rank's first batches: ``[batches, batch_size]`` int64."""
        return np.stack(list(islice(self.batches_from(0), min(len(self), _SAMPLE))))

    def batches_from(self, start: int) -> Iterator[np.ndarray]:
        """This rank's batches ``[batch_size]`` from step ``start`` of the endless sequence."""
        for rows in self.steps_from(start):
            yield rows[self.rank :: self.ranks]

    def steps_from(self, start: int) -> Iterator[np.ndarray]:
        """The rows ``[B]`` of all ranks from step ``start`` of the endless sequence."""
        begins = np.cumsum(self.sizes) - self.sizes
        shuffled = [_Shuffled(size, (self.seed, source)) for source, size in enumerate(self.sizes)]
        first, position = divmod(start, SORTED_BATCHES)
        for chunk in count(first):
            yield from self._chunk(chunk, shuffled, begins)[position:]
            position = 0

    def _chunk(self, number: int, shuffled: Sequence["_Shuffled"], begins: np.ndarray) -> np.ndarray:
        """The rows of ``SORTED_BATCHES`` steps: ``[SORTED_BATCHES, B]``."""
        step = self.batch_size * self.ranks
        first = number * SORTED_BATCHES * step
        done = self.mixture.counts(first)
        source = self.mixture.sources(first, first + SORTED_BATCHES * step)
        rows = np.empty(len(source), np.int64)
        for index, order in enumerate(shuffled):
            at = np.flatnonzero(source == index)
            rows[at] = begins[index] + order.rows(int(done[index]), len(at))
        rng = np.random.default_rng([self.seed, number])
        if self.widths is None:
            return rng.permuted(rows.reshape(SORTED_BATCHES, step), axis=1)
        return rng.permutation(rows[np.argsort(self.widths[rows], kind="stable")].reshape(SORTED_BATCHES, step))


class _Shuffled:
    """Endless passes over the rows of a source, each in an order of its own."""

    def __init__(self, size: int, seed: Sequence[int]) -> None:
        self.size, self.seed = size, seed
        self._pass, self._order = -1, np.empty(0, np.int64)

    def rows(self, first: int, size: int) -> np.ndarray:
        """The rows at the positions ``first`` to ``first + size - 1`` of the sequence."""
        parts = []
        while size:
            number, position = divmod(first, self.size)
            if number != self._pass:
                self._pass = number
                self._order = np.random.default_rng([*self.seed, number]).permutation(self.size)
            parts.append(self._order[position : position + size])
            first, size = first + len(parts[-1]), size - len(parts[-1])
        return np.concatenate([np.empty(0, np.int64), *parts])


class MixedLoader(ResumableLoader[Batch]):
    """The train loader of a mixture, which counts what it delivered of each source."""

    order: MixedOrder

    def __init__(
        self,
        dataset: BatchDataset[Batch],
        order: MixedOrder,
        *,
        workers: int = 0,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the loader; arguments as of ``ResumableLoader``."""
        super().__init__(dataset, order, workers=workers, identity=identity)
        self.tally = SourceTally(order.mixture)

    def __iter__(self) -> Iterator[Batch]:
        """Continue after the last batch delivered."""
        steps = self.order.steps_from(self.delivered)
        for batch in super().__iter__():
            rows = next(steps)
            self.tally.add(self.order.source_of(rows), self.dataset.tokens[rows])
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position, and what was delivered of each source."""
        return super().state_dict() | {"delivered": self.tally.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume after the last batch before a checkpoint.

        Raises:
            ValueError: it was saved with other data or settings, for which the position means other rows.
        """
        super().load_state_dict(state)
        self.tally.load_state_dict(state["delivered"])
