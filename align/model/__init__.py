"""The GPT: configuration, layers, network.

Public names are imported on first use, so that a configuration can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "GPT": "gpt",
    "GPTConfig": "config",
    "KVCache": "kv_cache",
    "RopeScaling": "config",
    "ScalarGPT": "gpt",
}

__all__ = ["GPT", "GPTConfig", "KVCache", "RopeScaling", "ScalarGPT"]

if TYPE_CHECKING:
    from align.model.config import GPTConfig, RopeScaling
    from align.model.gpt import GPT, ScalarGPT
    from align.model.kv_cache import KVCache
else:

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name not in _HOMES:
            raise AttributeError(f"module 'align.model' has no attribute {name!r}")
        return getattr(import_module(f"align.model.{_HOMES[name]}"), name)
