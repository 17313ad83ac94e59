"""What is wrong with data before anything trains on it: the checks of ``align doctor`` and its report.

Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Check": "align.curate.check",
    "Context": "align.curate.context",
    "Doctor": "align.curate.doctor",
    "Finding": "align.curate.check",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from align.curate.check import Check as Check
    from align.curate.check import Finding as Finding
    from align.curate.context import Context as Context
    from align.curate.doctor import Doctor as Doctor
else:

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name not in _HOMES:
            raise AttributeError(f"module 'align.curate' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
