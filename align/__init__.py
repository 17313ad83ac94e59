"""align: from raw text to an aligned, compared and exported GPT, on Lightning.

The public names are imported on first use, so that ``import align`` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "GPT": "align.model",
    "GPTConfig": "align.model",
    "SamplingConfig": "align.model",
    "generate": "align.model",
    "load_network": "align.model",
    "load_reward": "align.rewards",
    "Tokenizer": "align.tokenizer",
    "ChatData": "align.data",
    "PreferenceData": "align.data",
    "PromptData": "align.data",
    "TextData": "align.data",
    "PPO": "align.algorithms",
    "Pretrain": "align.algorithms",
    "Reward": "align.algorithms",
    "SFT": "align.algorithms",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'align' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
