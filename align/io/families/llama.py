"""LlamaForCausalLM: RMSNorm, rotary positions, SwiGLU, grouped-query attention."""

from typing import Any

from align.io.families.family import ROTARY_DEFAULTS, ConfigJson, RotaryFamily
from align.model.config import GPTConfig


class Llama(RotaryFamily):
    """Has biases on all linear layers or on none: its attention_bias covers the output projection too."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    classifier = "LlamaForSequenceClassification"
    needs = {}
    free = RotaryFamily.free | {"qkv_bias", "bias"}
    defaults = {
        **ROTARY_DEFAULTS,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
    }

    def misfits(self, config: GPTConfig) -> list[str]:
        """Also requires equal bias settings, and a width that transformers accepts."""
        found = super().misfits(config)
        if config.qkv_bias != config.bias:
            found.append(f"qkv_bias is {config.qkv_bias} and bias is {config.bias} (needs both or neither)")
        if config.width % config.heads:
            found.append(f"width is {config.width} (needs a multiple of heads, {config.heads})")
        return found

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds the two settings that stand for our biases."""
        return super().write(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.bias}

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Refuses bias settings that differ."""
        attention, mlp = fields.flag("attention_bias"), fields.flag("mlp_bias")
        if attention != mlp:
            raise fields.unsupported("attention_bias", attention, f"the same as mlp_bias, {mlp}")
        return super().read(fields) | {"qkv_bias": attention, "bias": mlp}
