"""Export: a trained model as others read it, and the proof that they read the same.

From a run, a checkpoint, an adapter or a model directory to safetensors or GGUF, quantized or not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from align.export.settings import ExportSettings as ExportSettings
    from align.export.source import Source as Source
    from align.export.source import open_source as open_source
    from align.export.tolerance import Tolerance as Tolerance
    from align.export.verify import Verification as Verification
    from align.export.write import Check as Check
    from align.export.write import export as export
else:

    def __getattr__(name: str) -> Any:
        """Import a public name from its home the first time it is asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module 'align.export' has no attribute {name!r}")
        return getattr(import_module(f"align.export.{_HOMES[name]}"), name)
