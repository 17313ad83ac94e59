"""Qwen3ForCausalLM: Llama with RMSNorm on each head's queries and keys, and heads of any width."""

from typing import Any

from align.io.families.family import ConfigJson, RotaryFamily
from align.io.families.qwen2 import Qwen2, read_optional_windows, write_optional_windows
from align.model.config import GPTConfig


class Qwen3(RotaryFamily):
    """Without biases: its attention_bias covers the attention projections alone, which our settings can't express."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    classifier = "Qwen3ForSequenceClassification"
    needs = {"qk_norm": "head"}
    free = RotaryFamily.free | {"window", "window_layers"}
    defaults = Qwen2.defaults | {"head_dim": 128}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds windows, and attention without biases."""
        return super().write(config) | {"attention_bias": False} | write_optional_windows(config)

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Refuses biases."""
        fields.only("attention_bias", False)
        return super().read(fields) | read_optional_windows(fields)
