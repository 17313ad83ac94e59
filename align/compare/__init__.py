"""Comparison of models on the same prompts: responses, judges, paired statistics, the frontier, a report."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "BestOf": "best_of",
    "Candidate": "candidates",
    "Judge": "judges",
    "Metric": "metrics",
    "Response": "respond",
    "ResponseConfig": "respond",
    "Run": "candidates",
    "Task": "comparison",
    "compare": "comparison",
    "to_markdown": "markdown",
    "write_html": "html",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from align.compare.best_of import BestOf as BestOf
    from align.compare.candidates import Candidate as Candidate
    from align.compare.candidates import Run as Run
    from align.compare.comparison import Task as Task
    from align.compare.comparison import compare as compare
    from align.compare.html import write_html as write_html
    from align.compare.judges import Judge as Judge
    from align.compare.markdown import to_markdown as to_markdown
    from align.compare.metrics import Metric as Metric
    from align.compare.respond import Response as Response
    from align.compare.respond import ResponseConfig as ResponseConfig
else:

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used."""
        if name not in _HOMES:
            raise AttributeError(f"module 'align.compare' has no attribute {name!r}")
        return getattr(import_module(f"align.compare.{_HOMES[name]}"), name)
