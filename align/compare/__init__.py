"""Comparison of models on the same prompts: responses, judges, paired statistics, the frontier, a report."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Candidate": "candidates",
    "Judge": "judges",
    "Metric": "metrics",
    "Response": "responses",
    "ResponseConfig": "responses",
    "Run": "candidates",
    "Task": "comparison",
    "compare": "comparison",
    "to_markdown": "markdown",
    "write_html": "html",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'align.compare' has no attribute {name!r}")
    return getattr(import_module(f"align.compare.{_HOMES[name]}"), name)
