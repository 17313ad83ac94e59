"""Checks that the settings of every generator share."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any


def check_sizes(config: Any, *, rates: Iterable[str] = ()) -> None:
    """Check the numbers of records and the probabilities of a generator's settings.

    Args:
        config: a dataclass; its integers are numbers of records.
        rates: names of its probabilities.

    Raises:
        ValueError: a number of records is negative, or a probability is outside [0, 1].
    """
    for name in rates:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it is a probability and must lie in [0, 1]")
    for name, value in asdict(config).items():
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{name} is {value}; a number of records must be 0 or more")
