"""Which rows come when: an order that is a pure function of (seed, pass), and loaders that can be taken up again.

Lightning saves the ``state_dict`` of a train loader in its checkpoints and saves no random state, so nothing here draws
from a random generator that lives longer than one pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
from torch import Generator
from torch.cuda import is_available
from torch.utils.data import DataLoader

from align.data.collate import Batch, BatchDataset

_SORTED_BATCHES = 64
"""Length buckets are cut from this many batches' worth of shuffled rows, sorted: enough for even batches, few enough
that every pass groups rows anew"""

_PRODUCT = "batch_size x ranks"


@dataclass(frozen=True)
class BatchOrder:
    """The batches of every pass over some rows, for one rank of several.

    One order is made for all ranks; of every ``batch_size * ranks`` rows each rank takes every ranks-th. So the order
    depends on the product alone: 2 ranks with 4 rows see what 1 rank with 8 sees.

    The tail: the last batch of a pass is filled up with -1 (a row of padding, which counts nothing). Where rows are
    shuffled, the few (fewer than ranks) that can't be dealt evenly are left out, others in every pass; where they are
    not (validation) every row comes exactly once.
    """

    rows: int
    """Rows there are"""
    batch_size: int
    """Rows of a batch on one rank"""
    seed: int | None = None
    """Shuffles; None: the order of the rows"""
    ranks: int = 1
    """Data-parallel processes"""
    rank: int = 0
    """Which of them this is"""
    widths: np.ndarray | None = None
    """``[rows]`` tokens of each row: rows of similar length then share a batch. None: lengths don't matter"""

    def __len__(self) -> int:
        """Batches of one pass, on every rank."""
        used = self.rows if self.seed is None else self.rows - self.rows % self.ranks
        return -(-used // (self.batch_size * self.ranks))

    def batches(self, number: int) -> np.ndarray:
        """This rank's batches of pass ``number``.

        Returns:
            ``[batches, batch_size]`` int64 row numbers, -1 for padding.
        """
        step = self.batch_size * self.ranks
        order = np.arange(self.rows)
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, number])
            order = rng.permutation(self.rows)[: self.rows - self.rows % self.ranks]
            if self.widths is not None:
                chunk = np.arange(len(order)) // (step * _SORTED_BATCHES)
                order = order[np.lexsort((self.widths[order], chunk))]
        table = np.full((len(self), step), -1)
        table.reshape(-1)[: len(order)] = order
        if self.seed is not None and self.widths is not None:
            table = rng.permutation(table)
        return table[:, self.rank :: self.ranks]


class BatchLoader(Generic[Batch]):
    """A sized iterable of batches, always from the first one: validation and test.

    Not a torch ``DataLoader``, so that Lightning puts no sampler of its own into it.
    """

    def __init__(self, dataset: BatchDataset[Batch], order: BatchOrder, *, workers: int = 0) -> None:
        """Build the loader.

        Args:
            dataset: gives the batch of an array of row numbers.
            order: the batches of a pass.
            workers: processes that make batches ahead; 0: the training process makes them.
        """
        self.dataset, self.order, self.workers = dataset, order, workers

    def __len__(self) -> int:
        """Batches of one pass."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        """Go through one pass."""
        return self._batches(0)

    def _batches(self, start: int) -> Iterator[Batch]:
        """As many batches as a pass has, from batch ``start`` of the endless row of passes."""
        return iter(
            DataLoader(
                self.dataset,  # type: ignore[arg-type]
                batch_size=None,
                sampler=self._row_numbers(start),
                collate_fn=_as_it_is,  # the default turns tuples of texts into lists
                num_workers=self.workers,
                pin_memory=is_available(),
                generator=Generator(),  # else every new iterator moves torch's global generator
            )
        )

    def _row_numbers(self, start: int) -> Iterator[np.ndarray]:
        number, position = divmod(start, len(self))
        yield from self.order.batches(number)[position:]
        if position:
            yield from self.order.batches(number + 1)[:position]


def _as_it_is(batch: Any) -> Any:
    return batch


class ResumableLoader(BatchLoader[Batch]):
    """The train loader: an endless row of passes, and a count of the batches that were delivered.

    Every iterator gives as many batches as a pass has, going on from where the last one was left. An epoch that
    Lightning ends early (``limit_train_batches``) is therefore followed by rows that have not been seen yet, and a
    resumed run gets what the interrupted one would have got, wherever in an epoch it was stopped. Only what was handed
    out is counted, not what workers have made ahead.
    """

    def __init__(
        self,
        dataset: BatchDataset[Batch],
        order: BatchOrder,
        *,
        workers: int = 0,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the loader.

        Args:
            dataset: gives the batch of an array of row numbers.
            order: the batches of a pass, shuffled.
            workers: processes that make batches ahead; 0: the training process makes them.
            identity: settings that decide what the rows are; a checkpoint made with others is refused.
        """
        super().__init__(dataset, order, workers=workers)
        self.delivered = 0
        self._identity = dict(identity or {}) | {
            "rows": order.rows,
            _PRODUCT: order.batch_size * order.ranks,
            "seed": order.seed,
        }

    def __iter__(self) -> Iterator[Batch]:
        """Go on from the batch after the last one delivered."""
        for number, batch in enumerate(self._batches(self.delivered), self.delivered + 1):
            self.delivered = number
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Pass and position within it (batches on each rank), and what they were counted with."""
        number, position = divmod(self.delivered, len(self))
        return {"pass": number, "position": position} | self._identity

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was made.

        Raises:
            ValueError: it was made with other data or settings, where the position would mean other rows.
        """
        for name, now in self._identity.items():
            if state.get(name) != now:
                cure = "resume with the settings and files it was made with"
                if name == _PRODUCT:
                    cure = f"on {self.order.ranks} rank(s) {_batch_size_for(state.get(name), self.order.ranks)}"
                raise ValueError(
                    f"the checkpoint's place in the data was counted with {name} = {state.get(name)}, now it is {now}: "
                    f"{cure}, or start anew from its model directory"
                )
        self.delivered = state["pass"] * len(self) + state["position"]


def _batch_size_for(product: Any, ranks: int) -> str:
    if isinstance(product, int) and product % ranks == 0:
        return f"set data.batch_size to {product // ranks}"
    return f"that can't be: take a number of ranks that divides {product}"
