"""Export a run, checkpoint, adapter or model directory to safetensors or GGUF, and verify the result."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Check": "write_export",
    "ExportSettings": "export_settings",
    "Source": "source",
    "Tolerance": "verify",
    "Verification": "verify",
    "export": "write_export",
    "open_source": "source",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from align.export.export_settings import ExportSettings as ExportSettings
    from align.export.source import Source as Source
    from align.export.source import open_source as open_source
    from align.export.verify import Tolerance as Tolerance
    from align.export.verify import Verification as Verification
    from align.export.write_export import Check as Check
    from align.export.write_export import export as export
else:

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name not in _HOMES:
            raise AttributeError(f"module 'align.export' has no attribute {name!r}")
        return getattr(import_module(f"align.export.{_HOMES[name]}"), name)
