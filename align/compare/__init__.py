"""Models that answer the same prompts: samples, judges, paired statistics, the reward-KL frontier, a report."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from align.compare.answers import AnswerConfig as AnswerConfig
    from align.compare.comparison import Task as Task
    from align.compare.comparison import compare as compare
    from align.compare.entrants import Entrant as Entrant
    from align.compare.entrants import Run as Run
    from align.compare.html import write_html as write_html
    from align.compare.judges import Judge as Judge
    from align.compare.markdown import to_markdown as to_markdown
else:

    def __getattr__(name: str) -> Any:
        """Import a public name from its home the first time it is asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module 'align.compare' has no attribute {name!r}")
        return getattr(import_module(f"align.compare.{_HOMES[name]}"), name)
