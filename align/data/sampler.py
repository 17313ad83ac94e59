"""The order of rows, a pure function of seed and pass, and loaders that resume.

Lightning saves the ``state_dict`` of a train loader in its checkpoints, but no random state. So no random generator
here outlives a pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol

import numpy as np
from torch import Generator
from torch.cuda import is_available
from torch.utils.data import DataLoader

from align.data.collate import Batch, BatchDataset

SORTED_BATCHES = 64
"""Shuffled rows of this many batches are sorted by length and split into batches: enough for batches of even length,
few enough that every pass groups rows differently"""

PRODUCT = "batch_size x ranks"
"""What decides, besides the seed, which rows a step has"""


class Order(Protocol):
    """The batches of one rank, a pure function of their number."""

    @property
    def batch_size(self) -> int:
        """Rows of a batch on one rank."""
        ...

    @property
    def ranks(self) -> int:
        """Number of data-parallel ranks."""
        ...

    def __len__(self) -> int:
        """Batches of an epoch, the same on every rank."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the order."""
        ...

    def batches_from(self, start: int) -> Iterator[np.ndarray]:
        """This rank's batches ``[batch_size]`` from batch ``start`` of the endless sequence of epochs."""
        ...

    def sample(self) -> np.ndarray:
        """Batches that stand for all: ``[batches, batch_size]`` int64 indices of rows, -1 for padding."""
        ...


@dataclass(frozen=True)
class BatchOrder:
    """The batches of each pass over the rows, for one rank.

    All ranks share one order: each rank takes a strided slice of every ``batch_size * ranks`` rows. So the order
    depends on that product alone: 2 ranks with 4 rows each see what 1 rank with 8 sees.

    The last batch of a pass is filled with -1, a row of padding. If rows are shuffled, the remainder that does not
    divide among the ranks is left out, other rows in each pass. Otherwise (validation) every row occurs exactly once.
    """

    rows: int
    """Number of rows"""
    batch_size: int
    """Rows of a batch on one rank"""
    seed: int | None = None
    """Seed of the shuffling; None: rows stay in order"""
    ranks: int = 1
    """Number of data-parallel ranks"""
    rank: int = 0
    """Index of this rank"""
    widths: np.ndarray | None = None
    """``[rows]`` tokens of each row, if rows of similar length should share a batch; else None"""

    def __len__(self) -> int:
        """Batches of one pass, the same on every rank."""
        used = self.rows if self.seed is None else self.rows - self.rows % self.ranks
        return -(-used // (self.batch_size * self.ranks))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the order."""
        return {"rows": self.rows, PRODUCT: self.batch_size * self.ranks, "seed": self.seed}

    def batches_from(self, start: int) -> Iterator[np.ndarray]:
        """This rank's batches ``[batch_size]`` from batch ``start`` of the endless sequence of passes."""
        number, position = divmod(start, len(self))
        while True:
            yield from self.batches(number)[position:]
            number, position = number + 1, 0

    def sample(self) -> np.ndarray:
        """The batches of the first pass."""
        return self.batches(0)

    def batches(self, number: int) -> np.ndarray:
        """This rank's batches of pass ``number``.

        Returns:
            ``[batches, batch_size]`` int64 indices of rows, -1 for padding.
        """
        step = self.batch_size * self.ranks
        order = np.arange(self.rows)
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, number])
            order = rng.permutation(self.rows)[: self.rows - self.rows % self.ranks]
            if self.widths is not None:
                chunk = np.arange(len(order)) // (step * SORTED_BATCHES)
                order = order[np.lexsort((self.widths[order], chunk))]
        table = np.full((len(self), step), -1)
        table.reshape(-1)[: len(order)] = order
        if self.seed is not None and self.widths is not None:
            table = rng.permutation(table)
        return table[:, self.rank :: self.ranks]


class BatchLoader(Generic[Batch]):
    """Batches of one pass, always from the first: for validation and test.

    It wraps a torch ``DataLoader`` without being one, so that Lightning does not replace its sampler.
    """

    def __init__(self, dataset: BatchDataset[Batch], order: Order, *, workers: int = 0) -> None:
        """Build the loader.

        Args:
            dataset: returns the batch of an array of indices.
            order: the batches of a pass.
            workers: processes that prepare batches; 0: the training process does.
        """
        self.dataset, self.order, self.workers = dataset, order, workers

    def __len__(self) -> int:
        """Batches of one pass."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over one pass."""
        return self._batches(0)

    def _batches(self, start: int) -> Iterator[Batch]:
        """The batches of one pass's length, from batch ``start`` of the endless sequence of passes."""
        return iter(
            DataLoader(
                self.dataset,  # type: ignore[arg-type]
                batch_size=None,
                sampler=islice(self.order.batches_from(start), len(self)),
                collate_fn=_unchanged,  # the default turns tuples of texts into lists
                num_workers=self.workers,
                pin_memory=is_available(),
                generator=Generator(),  # else every new iterator advances torch's global generator
            )
        )


def _unchanged(batch: Any) -> Any:
    return batch


class ResumableLoader(BatchLoader[Batch]):
    """The train loader: an endless sequence of passes and the number of batches delivered.

    Every iterator yields the number of batches of a pass, starting after the last batch delivered. So an epoch that
    Lightning ends early (``limit_train_batches``) is followed by rows not seen yet, and a resumed run gets the batches
    that the interrupted one would have got, also within an epoch. Batches that workers have prepared but not delivered
    do not count.
    """

    def __init__(
        self,
        dataset: BatchDataset[Batch],
        order: Order,
        *,
        workers: int = 0,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the loader.

        Args:
            dataset: returns the batch of an array of indices.
            order: the batches of a pass, shuffled.
            workers: processes that prepare batches; 0: the training process does.
            identity: what decides the rows; a checkpoint with another identity is refused.
        """
        super().__init__(dataset, order, workers=workers)
        self.delivered = 0
        self._identity = dict(identity or {}) | order.identity

    def __iter__(self) -> Iterator[Batch]:
        """Continue after the last batch delivered."""
        for number, batch in enumerate(self._batches(self.delivered), self.delivered + 1):
            self.delivered = number
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Pass, position within it (batches on each rank), and the identity of the rows."""
        number, position = divmod(self.delivered, len(self))
        return {"pass": number, "position": position} | self._identity

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume after the last batch before a checkpoint.

        Raises:
            ValueError: it was saved with other data or settings, for which the position means other rows.
        """
        refuse_other_data(state, self._identity, self.order.ranks)
        self.delivered = state["pass"] * len(self) + state["position"]


def refuse_other_data(state: Mapping[str, Any], identity: Mapping[str, Any], ranks: int) -> None:
    """Refuse a checkpoint whose position means other rows here.

    Args:
        state: a loader's state in a checkpoint.
        identity: what decides the rows now.
        ranks: number of data-parallel ranks now.

    Raises:
        ValueError: they differ.
    """
    for name, now in identity.items():
        if state.get(name) != now:
            fix = "resume with the files and settings of the checkpoint"
            if name == PRODUCT:
                fix = f"on {ranks} rank(s) {_batch_size_for(state.get(name), ranks)}"
            raise ValueError(
                f"the checkpoint's position in the data refers to {name} = {state.get(name)}, but it is now {now}: "
                f"{fix}, or start a new run from its model directory"
            )


def _batch_size_for(product: Any, ranks: int) -> str:
    if isinstance(product, int) and product % ranks == 0:
        return f"set data.batch_size to {product // ranks}"
    return f"this is impossible; use a number of ranks that divides {product}"
