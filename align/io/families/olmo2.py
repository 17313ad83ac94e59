"""Olmo2ForCausalLM: norms on the outputs of sub-layers, and on all queries and keys together."""

from collections.abc import Iterable
from typing import Any

from align.io.families.family import ROTARY_DEFAULTS, ConfigJson, FileTensor, RotaryFamily, renamed
from align.model.config import GPTConfig

_NORMS = {
    ".attention_output_layernorm.": ".post_attention_layernorm.",
    ".mlp_output_layernorm.": ".post_feedforward_layernorm.",
}


class Olmo2(RotaryFamily):
    """Without biases."""

    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    classifier = "Olmo2ForSequenceClassification"
    needs = {"norm_placement": "output", "qk_norm": "all"}
    defaults = {
        **ROTARY_DEFAULTS,
        "vocab_size": 50304,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
    }

    def misfits(self, config: GPTConfig) -> list[str]:
        """Also requires heads of width / heads."""
        found = super().misfits(config)
        if config.resolved_head_width * config.heads != config.width:
            found.append(f"head_width is {config.head_width} (needs width / heads, {config.width} / {config.heads})")
        return found

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds that there are no biases."""
        return super().write(config) | {"attention_bias": False}

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Refuses biases."""
        fields.only("attention_bias", False)
        return super().read(fields)

    def layout(self, names: Iterable[str], config: GPTConfig) -> list[FileTensor]:
        """The norms have names of their own."""
        return renamed(names, _NORMS)
