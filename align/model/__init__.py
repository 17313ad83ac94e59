"""The GPT: its shape, network, sampling, and the directory it is kept in.

The public names are imported on first use, so that the shape of a network can be read without torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "GPT": "gpt",
    "GPTConfig": "config",
    "KVCache": "cache",
    "LoraConfig": "lora",
    "RopeScaling": "config",
    "Samples": "generation",
    "SamplingConfig": "sampling_config",
    "SharedRows": "shared_prefix",
    "ScalarGPT": "scalar",
    "adapters": "lora",
    "add_adapter": "lora",
    "generate": "generation",
    "is_adapter": "manifest",
    "load_adapter": "adapter_directory",
    "load_network": "directory",
    "load_scalar": "scalar",
    "locate": "location",
    "read_config": "location",
    "read_manifest": "manifest",
    "merge": "lora",
    "replacing_directory": "replacing",
    "running_versions": "manifest",
    "save_adapter": "adapter_directory",
    "save_network": "directory",
    "share_answers": "shared_prefix",
    "share_base": "lora",
    "share_prefixes": "shared_prefix",
    "stage_of": "manifest",
    "unmerge": "lora",
    "using_adapter": "lora",
    "weights_fingerprint": "manifest",
    "write_manifest": "manifest",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'align.model' has no attribute {name!r}")
    return getattr(import_module(f"align.model.{_HOMES[name]}"), name)
