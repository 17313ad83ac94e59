"""Qwen2ForCausalLM: Llama with biases on queries, keys and values only."""

from typing import Any

from align.io.families.family import ConfigJson, RotaryFamily, refuse_sliding_window
from align.model.config import GPTConfig


class Qwen2(RotaryFamily):
    """Its biases are fixed, not a setting."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    classifier = "Qwen2ForSequenceClassification"
    needs = RotaryFamily.needs | {"qk_norm": False, "qkv_bias": True, "bias": False}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds full attention."""
        return super().write(config) | {"use_sliding_window": False}

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Refuses sliding windows."""
        refuse_sliding_window(fields)
        return super().read(fields)
