"""SmolLM3ForCausalLM: Llama with blocks that have no position encoding."""

from typing import Any

from align.io.families.family import ROTARY_DEFAULTS, ConfigJson, RotaryFamily, read_windows
from align.model.config import GPTConfig


class SmolLM3(RotaryFamily):
    """Every fourth block has no rope unless the file says otherwise (NoPE, arXiv:2501.18795)."""

    model_type = "smollm3"
    architecture = "SmolLM3ForCausalLM"
    classifier = "SmolLM3ForSequenceClassification"
    needs = {}
    free = RotaryFamily.free | {"no_rope_layers"}
    defaults = {
        **ROTARY_DEFAULTS,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "mlp_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    }
    theta = 2_000_000.0

    def misfits(self, config: GPTConfig) -> list[str]:
        """Also requires heads of width / heads, as transformers ignores another width."""
        found = super().misfits(config)
        if config.resolved_head_width * config.heads != config.width:
            found.append(f"head_width is {config.head_width} (needs width / heads, {config.width} / {config.heads})")
        return found

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds the blocks without rope; in the file, 1 means rope."""
        rotated = [int(layer not in config.no_rope_layers) for layer in range(config.layers)]
        bare = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
        return super().write(config) | bare | {"no_rope_layers": rotated}

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Refuses biases and windows, which no published checkpoint has."""
        for name in ("attention_bias", "mlp_bias", "use_sliding_window"):
            fields.only(name, False)
        layers, interval = fields.count("num_hidden_layers"), fields.count("no_rope_layer_interval")
        if read_windows(fields, [False] * layers):
            raise fields.unsupported("layer_types", fields.values["layer_types"], "'full_attention' for all layers")
        rotated = fields.items("no_rope_layers")
        if rotated is None:
            rotated = [(layer + 1) % interval != 0 for layer in range(layers)]
        if len(rotated) < layers:
            raise fields.unsupported("no_rope_layers", rotated, f"0 or 1 for each of {layers} layers, or null")
        bare = [layer for layer in range(layers) if not rotated[layer]]
        return super().read(fields) | {"no_rope_layers": bare}
