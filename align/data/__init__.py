"""Data modules: files and Hub data sets to batches of tokens. Names are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "ChatData": "align.data.text_data",
    "FeedbackData": "align.data.feedback_data",
    "PreferenceData": "align.data.pair_data",
    "PromptData": "align.data.pair_data",
    "TextData": "align.data.text_data",
    "WeightedSource": "align.data.mixing",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from align.data.feedback_data import FeedbackData as FeedbackData
    from align.data.mixing import WeightedSource as WeightedSource
    from align.data.pair_data import PreferenceData as PreferenceData
    from align.data.pair_data import PromptData as PromptData
    from align.data.text_data import ChatData as ChatData
    from align.data.text_data import TextData as TextData
else:

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name not in _HOMES:
            raise AttributeError(f"module 'align.data' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
