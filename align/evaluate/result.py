"""What an evaluation finds: measures with intervals, and the items behind them.

Legend: P items.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from align.evaluate.statistics import Estimate, higher, interval


class Measure(NamedTuple):
    """A measure of a task.

    Attributes:
        name: as lm-evaluation-harness writes it: metric and filter, such as ``acc,none``.
        value: over all items.
        stderr: its standard error; None if unknown.
        higher_is_better: None if unknown.
        values: ``[P]`` numbers whose mean is ``value``, one per item, in the task's order; None where the value is no
            mean.
    """

    name: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    values: np.ndarray | None

    @classmethod
    def of_items(cls, name: str, values: np.ndarray, *, higher_is_better: bool | None) -> "Measure":
        """The mean of one value per item.

        Args:
            name: of the measure.
            values: ``[P]``.
            higher_is_better: see the class.
        """
        stderr = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
        return cls(name, float(values.mean()), stderr, higher_is_better, values)

    def estimate(self) -> Estimate | None:
        """The value with its 95% interval over items; None without values."""
        return None if self.values is None else interval(self.values[None])


class Result(NamedTuple):
    """The outcome of a task.

    Attributes:
        task: its name.
        measures: at least one.
        items: one JSON-ready record per item, with ``doc_id``; empty for groups of tasks.
        settings: what the task was configured with.
    """

    task: str
    measures: Sequence[Measure]
    items: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]


class Difference(NamedTuple):
    """A measure of two models on the same items.

    Attributes:
        task: name of the task.
        measure: name of the measure.
        first: value of the first model.
        second: value of the second.
        gap: first minus second, with its 95% interval over items.
        better: 0 or 1, the model whose advantage is shown; None if the interval contains 0, or there are too few items.
    """

    task: str
    measure: str
    first: float
    second: float
    gap: Estimate
    better: int | None


def differences(first: Sequence[Result], second: Sequence[Result]) -> list[Difference]:
    """Paired differences of two models on every measure with values per item.

    Args:
        first: results of one model.
        second: of the other, on the same tasks and items.

    Raises:
        ValueError: the models answered different items.
    """
    found = []
    others = {result.task: {measure.name: measure for measure in result.measures} for result in second}
    for result in first:
        for measure in result.measures:
            other = others.get(result.task, {}).get(measure.name)
            if other is None or measure.values is None or other.values is None:
                continue
            if len(measure.values) != len(other.values):
                raise ValueError(
                    f"{result.task}: {len(measure.values)} items of one model and {len(other.values)} of the other; "
                    "evaluate both on the same items"
                )
            gap = interval((measure.values - other.values)[None])
            better = higher(gap, 0.0)
            if better is not None and measure.higher_is_better is False:
                better = 1 - better
            shown = None if measure.higher_is_better is None else better
            found.append(Difference(result.task, measure.name, measure.value, other.value, gap, shown))
    return found
