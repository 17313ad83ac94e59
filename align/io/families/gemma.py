"""Gemma2ForCausalLM and Gemma3ForCausalLM: scaled embeddings, (1 + w) norms on both sides, GeGLU, some windows."""

from collections.abc import Iterable
from typing import Any

from align.io.families.family import (
    ConfigJson,
    FileTensor,
    RotaryFamily,
    read_windows,
    renamed,
    rope_fields,
    rope_settings,
    write_windows,
)
from align.model.config import GPTConfig

_NORMS = {
    ".attention_output_layernorm.": ".post_attention_layernorm.",
    ".post_attention_layernorm.": ".pre_feedforward_layernorm.",
    ".mlp_output_layernorm.": ".post_feedforward_layernorm.",
}


class _Gemma(RotaryFamily):
    """What both share."""

    needs = {"norm_placement": "both", "norm_offset": True, "scale_embeddings": True, "feed_forward": "geglu"}
    free = RotaryFamily.free | {"window", "window_layers", "attention_scale", "attention_softcap", "logit_softcap"}
    act = ("hidden_activation", "gelu_pytorch_tanh")
    head_width = 256
    tied = True
    soft_caps: tuple[float | None, float | None]
    """Of attention and logits, in a file that says nothing"""
    window_interval: int
    """One block in this many has no window, the last of each group, in a file that says nothing"""

    def misfits(self, config: GPTConfig) -> list[str]:
        """Also requires an attention scale that is 1 / sqrt of an integer, and a width that transformers accepts."""
        found = super().misfits(config)
        scale = config.attention_scale
        if scale is not None and round(scale**-2) ** -0.5 != scale:
            found.append(f"attention_scale is {scale} (needs 1 / sqrt of an integer)")
        if config.width % config.heads:
            found.append(f"width is {config.width} (needs a multiple of heads, {config.heads})")
        return found

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds soft caps, windows, and the attention scale as the number whose root divides."""
        scale = config.attention_scale
        return (
            super().write(config)
            | write_windows(config)
            | {
                "sliding_window": config.window or config.context,  # transformers requires one
                "hidden_act": self.act[1],
                "query_pre_attn_scalar": config.resolved_head_width if scale is None else round(scale**-2),
                "attn_logit_softcapping": config.attention_softcap,
                "final_logit_softcapping": config.logit_softcap,
                "attention_bias": False,
                "use_bidirectional_attention": False,
            }
        )

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Refuses biases and bidirectional attention."""
        fields.only("attention_bias", False, default=False)
        fields.only("use_bidirectional_attention", False, default=False)
        interval = fields.get("sliding_window_pattern", self.window_interval)
        layers = fields.get("num_hidden_layers")
        attention, logits = (
            # An explicit null means none, unlike in other fields.
            fields.values.get(name, default)
            for name, default in zip(("attn_logit_softcapping", "final_logit_softcapping"), self.soft_caps, strict=True)
        )
        return (
            super().read(fields)
            | read_windows(fields, [(layer + 1) % interval != 0 for layer in range(layers)])
            | {
                "attention_scale": fields.get("query_pre_attn_scalar", 256) ** -0.5,
                "attention_softcap": attention,
                "logit_softcap": logits,
            }
        )

    def layout(self, names: Iterable[str], config: GPTConfig) -> list[FileTensor]:
        """The norms have names of their own."""
        return renamed(names, _NORMS)


class Gemma2(_Gemma):
    """Soft caps, and windows in every other block."""

    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    classifier = "Gemma2ForSequenceClassification"
    soft_caps = (50.0, 30.0)
    window_interval = 2


class Gemma3(_Gemma):
    """The text model: norms on queries and keys, and a RoPE base of their own in the blocks with a window."""

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    classifier = "Gemma3TextForSequenceClassification"
    needs = _Gemma.needs | {"qk_norm": "head"}
    free = _Gemma.free | {"window_rope_theta"}
    soft_caps = (None, None)
    window_interval = 6

    def misfits(self, config: GPTConfig) -> list[str]:
        """Also requires windows with unscaled RoPE."""
        found = super().misfits(config)
        if config.rope_scaling is not None and config.window is not None and config.window_rope_theta is None:
            found.append("window_rope_theta is None with rope_scaling (needs a base of its own)")
        return found

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds RoPE by kind of block, for transformers 5 and for older readers."""
        local = config.window_rope_theta or config.rope_theta
        return super().write(config) | {
            "rope_local_base_freq": local,
            "rope_parameters": {
                "full_attention": {"rope_theta": config.rope_theta, **rope_fields(config.rope_scaling)},
                "sliding_attention": {"rope_theta": local, "rope_type": "default"},
            },
        }

    def read_rope(self, fields: ConfigJson) -> dict[str, Any]:
        """RoPE by kind of block, from transformers 5's fields or the older ones."""
        by_kind = fields.mapping("rope_parameters")
        full = by_kind.get("full_attention") or fields.mapping("rope_scaling")
        rope = rope_settings(
            fields, "rope_parameters.full_attention", full, theta=fields.get("rope_theta", 1_000_000.0)
        )
        local = rope_settings(
            fields,
            "rope_parameters.sliding_attention",
            by_kind.get("sliding_attention") or {},
            theta=fields.get("rope_local_base_freq", 10_000.0),
        )
        if local["rope_scaling"] is not None:
            raise fields.unsupported(
                "rope_parameters.sliding_attention", by_kind, "unscaled RoPE in blocks with a window"
            )
        return rope | {"window_rope_theta": local["rope_theta"]}
