"""Models that answer the same prompts: samples, judges, paired statistics, the reward-KL frontier, a report."""

from importlib import import_module
from typing import Any

_HOMES = {
    "AnswerConfig": "answers",
    "Entrant": "entrants",
    "Judge": "judges",
    "Run": "entrants",
    "Task": "comparison",
    "compare": "comparison",
    "to_markdown": "markdown",
    "write_html": "html",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'align.compare' has no attribute {name!r}")
    return getattr(import_module(f"align.compare.{_HOMES[name]}"), name)
