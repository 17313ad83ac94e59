"""align: from raw text to an aligned, compared and exported GPT, on Lightning.

The public names are imported on first use, so that ``import align`` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ChatData": "align.data",
    "DPO": "align.algorithms",
    "GPT": "align.model",
    "GPTConfig": "align.model",
    "LoraConfig": "align.adapters.lora",
    "PPO": "align.algorithms",
    "PreferenceData": "align.data",
    "Pretrain": "align.algorithms",
    "PromptData": "align.data",
    "Reward": "align.algorithms",
    "SFT": "align.algorithms",
    "SamplingConfig": "align.generation.sampling_config",
    "ScalarGPT": "align.model",
    "TextData": "align.data",
    "Tokenizer": "align.tokenizer",
    "generate": "align.generation.generate",
    "load_network": "align.io.directory",
    "load_reward": "align.rewards",
    "save_network": "align.io.directory",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'align' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
