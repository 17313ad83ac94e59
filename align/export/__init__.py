"""Export: a trained model as others read it, and the proof that they read the same.

From a run, a checkpoint, an adapter or a model directory to safetensors or GGUF, quantized or not.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Check": "write",
    "ExportSettings": "settings",
    "Source": "source",
    "Tolerance": "tolerance",
    "Verification": "verify",
    "export": "write",
    "open_source": "source",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'align.export' has no attribute {name!r}")
    return getattr(import_module(f"align.export.{_HOMES[name]}"), name)
