"""Gemma2ForCausalLM and Gemma3ForCausalLM: scaled embeddings, (1 + w) norms on both sides, GeGLU, some windows."""

from collections.abc import Iterable
from typing import Any

from align.io.families.family import (
    LAYER_KINDS,
    ROTARY_DEFAULTS,
    ConfigJson,
    FileTensor,
    RotaryFamily,
    read_scaling,
    read_windows,
    renamed,
    rope_fields,
    settle,
    write_windows,
)
from align.model.config import GPTConfig
from align.model.rope_scaling import YarnScaling

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
    defaults = {
        **ROTARY_DEFAULTS,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": None,
    }

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
        fields.only("attention_bias", False)
        fields.only("use_bidirectional_attention", False, None)
        interval, layers = self.window_interval(fields), fields.count("num_hidden_layers")
        if (scalar := fields.number("query_pre_attn_scalar")) <= 0:
            raise fields.unsupported("query_pre_attn_scalar", scalar, "a number above 0")
        return (
            super().read(fields)
            | read_windows(fields, [(layer + 1) % interval != 0 for layer in range(layers)])
            | {
                "attention_scale": scalar**-0.5,
                "attention_softcap": fields.number("attn_logit_softcapping", null=None),
                "logit_softcap": fields.number("final_logit_softcapping", null=None),
            }
        )

    def window_interval(self, fields: ConfigJson) -> int:
        """One block in this many has no window, the last of each group, in a file that has no ``layer_types``."""
        raise NotImplementedError

    def layout(self, names: Iterable[str], config: GPTConfig) -> list[FileTensor]:
        """The norms have names of their own."""
        return renamed(names, _NORMS)


class Gemma2(_Gemma):
    """Soft caps, and windows in every other block."""

    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    classifier = "Gemma2ForSequenceClassification"
    defaults = _Gemma.defaults | {
        "vocab_size": 256_000,
        "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }

    def window_interval(self, fields: ConfigJson) -> int:
        """Every other block, whatever ``sliding_window_pattern`` says, which transformers does not read either."""
        return 2


class Gemma3(_Gemma):
    """The text model: norms on queries and keys, and a RoPE base of their own in the blocks with a window."""

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    classifier = "Gemma3TextForSequenceClassification"
    needs = _Gemma.needs | {"qk_norm": "head"}
    free = _Gemma.free - {"attention_softcap"} | {"window_rope_theta"}
    defaults = _Gemma.defaults | {
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "sliding_window_pattern": 6,
        "use_bidirectional_attention": False,
    }

    def misfits(self, config: GPTConfig) -> list[str]:
        """Also requires windows with unscaled RoPE, and YaRN with the borders that transformers computes."""
        found = super().misfits(config)
        if isinstance(config.rope_scaling, YarnScaling) and not config.rope_scaling.truncate:
            found.append("rope_scaling.truncate is False (needs True)")
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

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Refuses the soft cap of scores, which transformers ignores; a base for windows needs windows."""
        fields.only("attn_logit_softcapping", None)
        found = super().read(fields)
        return found if "window" in found else found | {"window_rope_theta": None}

    def window_interval(self, fields: ConfigJson) -> int:
        """What ``sliding_window_pattern`` says."""
        return int(fields.count("sliding_window_pattern", null=self.defaults["sliding_window_pattern"]))

    def read_rope(self, fields: ConfigJson) -> dict[str, Any]:
        """RoPE by kind of block, from transformers 5's fields or the older ones, by transformers' rule.

        ``rope_scaling`` is merged into ``rope_parameters.full_attention``.
        """
        by_kind = ConfigJson(fields.mapping("rope_parameters"), fields.path)
        if unknown := sorted(by_kind.values.keys() - set(LAYER_KINDS)):
            raise fields.unsupported("rope_parameters", dict(by_kind.values), f"an object without {unknown[0]}")
        full, local = (by_kind.mapping(kind) for kind in LAYER_KINDS)
        added = fields.mapping("rope_scaling")
        name, sliding = "rope_parameters.full_attention", "rope_parameters.sliding_attention"
        before, scaling = (read_scaling(fields, name, rope) for rope in (full, full | added))
        if before is not None and "rope_scaling" in fields.values and (not added or before != scaling):
            raise fields.conflict(name, full, "rope_scaling", fields.values["rope_scaling"])
        if scaling is not None and scaling.get("truncate") is False:
            raise fields.unsupported(f"{name}.truncate", False, "true")
        if read_scaling(fields, sliding, local) is not None:
            raise fields.unsupported(sliding, local, "unscaled RoPE in blocks with a window")
        bases = {
            "rope_scaling.rope_theta": added.get("rope_theta"),
            f"{name}.rope_theta": full.get("rope_theta"),
            "rope_theta": fields.values.get("rope_theta"),
        }
        windows = {
            f"{sliding}.rope_theta": local.get("rope_theta"),
            "rope_local_base_freq": fields.values.get("rope_local_base_freq"),
        }
        shares = {
            f"{path}.partial_rotary_factor": rope.get("partial_rotary_factor")
            for path, rope in ((name, full | added), (sliding, local))
        }
        return {
            "rope_theta": settle(fields, bases, default=1_000_000.0),
            "rope_fraction": settle(fields, shares, default=1.0),
            "rope_scaling": scaling,
            "window_rope_theta": settle(fields, windows, default=10_000.0),
        }
