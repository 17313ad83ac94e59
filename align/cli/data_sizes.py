"""Sizes of a data module's training batches, from some of its records."""

from typing import Any

import numpy as np

from align.curate.context import Split
from align.curate.reading import read_splits
from align.data.data_module import TokenData
from align.data.pair_data import PromptData
from align.data.response_data import ResponseData
from align.data.text_data import RowData
from align.plan.volume import DataSizes

RECORDS = 2000
"""Records that are read"""

_BATCHES = 200
"""Random batches whose mean and largest size stand for those of a run"""


def data_sizes(data: Any, stage: Any, *, records: int = RECORDS) -> DataSizes | str:
    """Sizes of the training data, or why they are unknown.

    Args:
        data: a data module, constructed.
        stage: that reads it.
        records: of the training data to read.
    """
    if not isinstance(data, TokenData):
        return f"{type(data).__name__} is not a data module of align"
    try:
        split = read_splits(data, limit=records).get("train")
    except ValueError as error:
        return str(error)
    if split is None or not split.samples:
        return "no training data" if split is None else "; ".join(split.unreadable) or "no record can be used"
    return _measured(data, stage, split)


def _measured(data: TokenData, stage: Any, split: Split) -> DataSizes:
    """Sizes from the records that were read."""
    total = split.rows if split.rows is not None else len(split.samples)
    records = round(total * split.scale)
    lengths = np.array([max(len(row.ids) for row in sample.rows) for sample in split.samples])
    mean_row = float(np.mean([len(row.ids) for sample in split.samples for row in sample.rows]))
    if isinstance(data, PromptData):
        return DataSizes(records, mean_row, int(lengths.max()), mean_row, mean_row, int(lengths.max()))
    if isinstance(data, RowData) and data.packing != "none":
        return DataSizes(records, data.context, data.context, data.context)
    if isinstance(data, ResponseData) and getattr(stage, "shared_prefix", False):
        # Without padding, prompts once.
        mean = (split.computed or split.tokens) / max(1, total)
        spread = np.array([sum(len(row.ids) for row in sample.rows) for sample in split.samples], float)
        largest = _batches(spread * mean / spread.mean(), data.batch_size).mean(1).max()
        return DataSizes(records, mean, round(float(largest)), mean_row)
    rows, longest = len(split.samples[0].rows), _batches(lengths, data.batch_size).max(1)
    return DataSizes(records, rows * float(longest.mean()), rows * int(longest.max()), mean_row)


def _batches(values: np.ndarray, size: int) -> np.ndarray:
    """``[batches, size]`` random batches, the same every time."""
    return np.random.default_rng(0).choice(values, (_BATCHES, size))
