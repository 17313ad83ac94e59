"""MistralForCausalLM: Llama with sliding-window attention in every block, and heads of any width."""

from typing import Any

from align.io.families.family import ROTARY_DEFAULTS, ConfigJson, RotaryFamily, read_windows
from align.model.config import GPTConfig


class Mistral(RotaryFamily):
    """A window in every block, or in none."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    classifier = "MistralForSequenceClassification"
    needs = {}
    free = RotaryFamily.free | {"window"}
    defaults = {
        **ROTARY_DEFAULTS,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    }

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds the window."""
        return super().write(config) | {"sliding_window": config.window}

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Adds the window."""
        return super().read(fields) | read_windows(fields, [True] * fields.count("num_hidden_layers"))
