"""A family of Hugging Face checkpoints: how its config.json and its tensor names map to ours."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from align.model.config import GPTConfig

_UNSET: Any = object()

_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_context",
}


class FileTensor(NamedTuple):
    """A tensor of a weight file, made of one or more of ours.

    Attributes:
        name: its name in the file.
        parts: names of our tensors, concatenated along their first axis.
        transposed: the file has ``[in, out]`` where we have ``[out, in]``.
    """

    name: str
    parts: tuple[str, ...]
    transposed: bool = False


class ConfigJson:
    """The fields of a config.json, read with errors that name file, field and value."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        """Wrap the parsed ``values`` of the file ``path``."""
        self.values = values
        self.path = path

    def get(self, name: str, default: Any = _UNSET) -> Any:
        """A field's value; ``default`` where it is absent or null.

        Raises:
            ValueError: the field is absent and has no default.
        """
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _UNSET:
            raise ValueError(f"{self.path}: {name} is missing")
        return default

    def only(self, name: str, *supported: Any, default: Any = None) -> Any:
        """A field's value, which must be one of ``supported``.

        Raises:
            ValueError: it is none of them.
        """
        value = self.get(name, default)
        if value not in supported:
            raise self.unsupported(name, value, " or ".join(repr(known) for known in supported))
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """A field that is an object; empty where it is absent or null.

        Raises:
            ValueError: it is something else.
        """
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.unsupported(name, value, "an object or null")
        return dict(value)

    def unsupported(self, name: str, value: Any, supported: str) -> ValueError:
        """The error for a field that asks for something our network does not support."""
        return ValueError(f"{self.path}: {name} is {value!r}; supported: {supported}")


class Family:
    """A Hugging Face architecture that is equivalent to some of our configurations.

    Subclasses say which (``needs``, ``misfits``) and translate the configuration. Tensor names default to ours, which
    are Llama's.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    classifier: ClassVar[str]
    """The same network with a scalar head"""
    needs: ClassVar[Mapping[str, Any]]
    """Settings of GPTConfig that the architecture fixes"""

    def misfits(self, config: GPTConfig) -> list[str]:
        """Why the architecture can't express ``config``: one phrase per setting; empty if it can."""
        return [
            f"{name} is {value!r} (needs {needed!r})"
            for name, needed in self.needs.items()
            if (value := getattr(config, name)) != needed
        ]

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """``config`` as fields of config.json."""
        raise NotImplementedError

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """The settings of GPTConfig that a config.json describes, as ``GPTConfig.from_dict`` takes them.

        Raises:
            ValueError: a field is missing or asks for something our network does not support.
        """
        raise NotImplementedError

    def layout(self, names: Iterable[str]) -> list[FileTensor]:
        """The tensors of a file for our tensors ``names``."""
        return [FileTensor(name, (name,)) for name in names]

    def canonical(self, name: str) -> str | None:
        """The name that ``layout`` uses for a tensor found in a file; None for a buffer, which is skipped."""
        return None if name.endswith(".rotary_emb.inv_freq") else name


class RotaryFamily(Family):
    """What Llama, Qwen2 and Qwen3 share: pre-norm RMSNorm, rotary positions, SwiGLU."""

    needs = {"norm": "rmsnorm", "norm_placement": "pre", "positions": "rope", "feed_forward": "swiglu"}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """The fields that all three share."""
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.width,
            "intermediate_size": config.resolved_ff_width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.resolved_kv_heads,
            "head_dim": config.resolved_head_width,
            "hidden_act": "silu",
            "max_position_embeddings": config.context,
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tied_embeddings,
            "attention_dropout": config.dropout,
            "initializer_range": config.init_std,
            "embedding_std": config.embedding_std,
            **write_rope(config),
        }

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """The settings that all three share."""
        fields.only("hidden_act", "silu", default="silu")
        theta, scaling = read_rope(fields)
        return {
            **self.needs,
            "vocab_size": fields.get("vocab_size"),
            "width": fields.get("hidden_size"),
            "ff_width": fields.get("intermediate_size"),
            "layers": fields.get("num_hidden_layers"),
            "heads": fields.get("num_attention_heads"),
            "kv_heads": fields.get("num_key_value_heads", fields.get("num_attention_heads")),
            "head_width": fields.get("head_dim", None),
            "context": fields.get("max_position_embeddings"),
            "norm_eps": fields.get("rms_norm_eps", 1e-6),
            "tied_embeddings": fields.get("tie_word_embeddings", False),
            "dropout": fields.get("attention_dropout", 0.0),
            "init_std": fields.get("initializer_range", 0.02),
            "embedding_std": fields.get("embedding_std", 0.02),
            "rope_theta": theta,
            "rope_scaling": scaling,
        }


def write_rope(config: GPTConfig) -> dict[str, Any]:
    """RoPE settings for transformers 5 (rope_parameters) and for older readers (the other two)."""
    scaling = config.rope_scaling
    if scaling is None:
        rope: dict[str, Any] = {"rope_type": "default"}
    else:
        rope = {"rope_type": "llama3"} | {theirs: getattr(scaling, ours) for theirs, ours in _LLAMA3.items()}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if scaling else None,
        "rope_parameters": {"rope_theta": config.rope_theta, **rope},
    }


def read_rope(fields: ConfigJson) -> tuple[float, dict[str, Any] | None]:
    """RoPE base and scaling, from transformers 5's fields or the older ones."""
    name = "rope_parameters" if fields.mapping("rope_parameters") else "rope_scaling"
    rope = fields.mapping(name)
    theta = rope.pop("rope_theta", fields.get("rope_theta", 10000.0))
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    partial = rope.pop("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise fields.unsupported("partial_rotary_factor", partial, "1.0")
    if kind not in ("default", "llama3"):
        raise fields.unsupported(f"{name}.rope_type", kind, "'default' or 'llama3'")
    known = set(_LLAMA3) if kind == "llama3" else set()
    if unknown := sorted(rope.keys() - known):
        raise fields.unsupported(f"{name}.{unknown[0]}", rope[unknown[0]], f"rope_type {kind!r} without it")
    if missing := sorted(known - rope.keys()):
        raise ValueError(f"{fields.path}: {name}.{missing[0]} is missing")
    if kind == "default":
        return float(theta), None
    return float(theta), {_LLAMA3[name]: value for name, value in rope.items()}


def refuse_sliding_window(fields: ConfigJson) -> None:
    """Refuse sliding-window attention."""
    if fields.get("use_sliding_window", False):
        raise fields.unsupported("use_sliding_window", True, "False (full attention)")
    for kind in fields.get("layer_types", []):
        if kind != "full_attention":
            raise fields.unsupported("layer_types", kind, "'full_attention' in every layer")


def rename(name: str, table: Mapping[str, str]) -> str:
    """Replace the first pattern of ``table`` that matches ``name``.

    Raises:
        KeyError: none matches.
    """
    for pattern, replacement in table.items():
        renamed, count = re.subn(f"^{pattern}$", replacement, name)
        if count:
            return renamed
    raise KeyError(name)
