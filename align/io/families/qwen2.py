"""Qwen2ForCausalLM (Qwen2, Qwen2.5): Llama with biases on queries, keys and values, and optional windows."""

from typing import Any

from align.io.families.family import ROTARY_DEFAULTS, ConfigJson, RotaryFamily, read_windows, write_windows
from align.model.config import GPTConfig


class Qwen2(RotaryFamily):
    """Windows apply to the last blocks, if ``use_sliding_window`` is set."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    classifier = "Qwen2ForSequenceClassification"
    needs = {"qkv_bias": True}
    free = RotaryFamily.free | {"window", "window_layers"}
    defaults = {
        **ROTARY_DEFAULTS,
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds windows."""
        return super().write(config) | write_optional_windows(config)

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Adds windows."""
        return super().read(fields) | read_optional_windows(fields)


def write_optional_windows(config: GPTConfig) -> dict[str, Any]:
    """Windows as the fields of Qwen2 and Qwen3."""
    first = min(config.window_layers or (0,)) if config.window else config.layers
    return write_windows(config) | {"use_sliding_window": config.window is not None, "max_window_layers": first}


def read_optional_windows(fields: ConfigJson) -> dict[str, Any]:
    """Windows of Qwen2 and Qwen3, which have an effect only where ``use_sliding_window`` is set."""
    layers = fields.count("num_hidden_layers")
    if not fields.flag("use_sliding_window"):
        return {}
    first = fields.number("max_window_layers")  # may be 0
    return read_windows(fields, [layer >= first for layer in range(layers)])
