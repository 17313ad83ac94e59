"""What alignment cost in abilities: the models of a comparison on evaluation tasks, paired over items.

Legend: S seeds, P items.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align.evaluate.result import Measure, Result
from align.evaluate.statistics import Estimate, higher, interval

Runs = Sequence[Sequence[Result]]
"""Results of each of a model's runs, one per seed"""


def abilities(results: Mapping[str, Runs]) -> list[dict[str, Any]]:
    """Rows of the table of abilities, one for each measure that is a mean over items.

    Args:
        results: model -> results of its runs, the baseline first; a model has one run, or as many as others.

    Returns:
        list: ``task``, ``measure``, ``items``, and for each model its ``value``, the ``change`` from the baseline with
        95% intervals, and a ``verdict``.

    Raises:
        ValueError: models were evaluated on different items.
    """
    baseline = next(iter(results))
    rows = []
    for result in results[baseline][0]:
        for measure in result.measures:
            if measure.values is None:
                continue
            tables = {name: _table(runs, result.task, measure.name) for name, runs in results.items()}
            sizes = {name: table.shape[1] for name, table in tables.items()}
            if len(set(sizes.values())) > 1:
                raise ValueError(f"{result.task}: models were evaluated on different numbers of items: {sizes}")
            models = {name: _described(table, tables[baseline], measure) for name, table in tables.items()}
            models[baseline] |= {"change": None, "verdict": None}
            rows.append({"task": result.task, "measure": measure.name, "items": sizes[baseline], "models": models})
    return rows


def _table(runs: Runs, task: str, measure: str) -> np.ndarray:
    """``[S, P]`` values of a measure."""
    results = [result for run in runs for result in run if result.task == task]
    found = [one.values for result in results for one in result.measures if one.name == measure]
    known = [values for values in found if values is not None]
    if len(known) < len(runs) or len({len(values) for values in known}) > 1:
        raise ValueError(f"{task}: the runs of a model were evaluated on different items")
    return np.stack(known)


def _described(table: np.ndarray, baseline: np.ndarray, measure: Measure) -> dict[str, Any]:
    change = interval(table - baseline)  # a single run of the baseline is compared with each run of the model
    better = higher(change, 0.0)
    verdict = "no difference shown"
    if better is not None and measure.higher_is_better is not None:
        verdict = ("better", "worse")[better if measure.higher_is_better else 1 - better]
    return {"value": _plain(interval(table)), "change": _plain(change), "verdict": verdict}


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {"mean": estimate.mean, "ci95": [estimate.low, estimate.high]}
