"""The GPT: configuration, layers, network.

Public names are imported on first use, so that a configuration can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "GPT": "gpt",
    "GPTConfig": "config",
    "KVCache": "kv_cache",
    "LinearScaling": "rope_scaling",
    "Llama3Scaling": "rope_scaling",
    "RopeScaling": "rope_scaling",
    "ScalarGPT": "gpt",
    "YarnScaling": "rope_scaling",
}

__all__ = [
    "GPT",
    "GPTConfig",
    "KVCache",
    "LinearScaling",
    "Llama3Scaling",
    "RopeScaling",
    "ScalarGPT",
    "YarnScaling",
]

if TYPE_CHECKING:
    from align.model.config import GPTConfig
    from align.model.gpt import GPT, ScalarGPT
    from align.model.kv_cache import KVCache
    from align.model.rope_scaling import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling
else:

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name not in _HOMES:
            raise AttributeError(f"module 'align.model' has no attribute {name!r}")
        return getattr(import_module(f"align.model.{_HOMES[name]}"), name)
