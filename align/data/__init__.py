"""Readers, validation, packing and the LightningDataModules; imported on first use, so that this costs nothing."""

from importlib import import_module
from typing import Any

_HOMES = {
    "ChatData": "align.data.text_data",
    "PreferenceData": "align.data.pair_data",
    "PromptData": "align.data.pair_data",
    "TextData": "align.data.text_data",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'align.data' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
