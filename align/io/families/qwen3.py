"""Qwen3ForCausalLM: Llama with RMSNorm on each head's queries and keys, and heads of any width."""

from typing import Any

from align.io.families.family import ConfigJson, RotaryFamily, refuse_sliding_window
from align.model.config import GPTConfig


class Qwen3(RotaryFamily):
    """Without biases: its attention_bias covers the attention projections alone, which our settings can't express."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    classifier = "Qwen3ForSequenceClassification"
    needs = RotaryFamily.needs | {"qk_norm": True, "qkv_bias": False, "bias": False}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds full attention without biases."""
        return super().write(config) | {"attention_bias": False, "use_sliding_window": False}

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Refuses sliding windows and biases; the head width defaults to 128."""
        refuse_sliding_window(fields)
        fields.only("attention_bias", False, default=False)
        return super().read(fields) | {"head_width": fields.get("head_dim", 128)}
