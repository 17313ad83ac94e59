"""Checks of a dataclass's settings, with errors that name the setting, its value and what is valid."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any


def require(name: str, value: object, holds: bool, expected: str) -> None:
    """Check a setting.

    Raises:
        ValueError: ``holds`` is false.
    """
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {expected}")


def require_count(name: str, value: object) -> None:
    """Check that a setting is an integer from 1 on.

    Raises:
        ValueError: it is not.
    """
    require(
        name, value, isinstance(value, int) and not isinstance(value, bool) and value >= 1, "an integer, at least 1"
    )


def known(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, all of which ``kind`` has.

    Raises:
        ValueError: one is unknown; the message names the nearest.
    """
    names = [field.name for field in fields(kind)]
    for key in settings:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            raise ValueError(
                f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {names}")
            )
    return dict(settings)
