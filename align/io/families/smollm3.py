"""SmolLM3ForCausalLM: Llama with blocks that have no position encoding."""

from typing import Any

from align.io.families.family import ConfigJson, RotaryFamily
from align.model.config import GPTConfig


class SmolLM3(RotaryFamily):
    """Every fourth block has no rope unless the file says otherwise (NoPE, arXiv:2501.18795)."""

    model_type = "smollm3"
    architecture = "SmolLM3ForCausalLM"
    classifier = "SmolLM3ForSequenceClassification"
    needs = {}
    free = RotaryFamily.free | {"no_rope_layers"}
    tied = True
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
            fields.only(name, False, default=False)
        layers, interval = fields.get("num_hidden_layers"), fields.get("no_rope_layer_interval", 4)
        rotated = fields.get("no_rope_layers", [(layer + 1) % interval != 0 for layer in range(layers)])
        bare = [layer for layer in range(layers) if not rotated[layer]]
        return super().read(fields) | {"no_rope_layers": bare}
