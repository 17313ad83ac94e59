"""MistralForCausalLM: Llama with sliding-window attention in every block, and heads of any width."""

from typing import Any

from align.io.families.family import ConfigJson, RotaryFamily, read_windows
from align.model.config import GPTConfig


class Mistral(RotaryFamily):
    """A window in every block, or in none."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    classifier = "MistralForSequenceClassification"
    needs = {}
    free = RotaryFamily.free | {"window"}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds the window."""
        return super().write(config) | {"sliding_window": config.window}

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Adds the window."""
        return super().read(fields) | read_windows(fields, [True] * fields.get("num_hidden_layers"))
