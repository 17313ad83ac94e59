"""What a family of Hugging Face checkpoints is: its config.json and its tensor names, seen from ours."""

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
    """A tensor of a weight file, made of one or several of ours.

    Attributes:
        name: its name in the file.
        parts: names of our tensors, joined along their first axis.
        transposed: the file holds ``[in, out]`` where we hold ``[out, in]``.
    """

    name: str
    parts: tuple[str, ...]
    transposed: bool = False


class Fields:
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
            ValueError: it is another one.
        """
        value = self.get(name, default)
        if value not in supported:
            raise self.unsupported(name, value, " or ".join(repr(known) for known in supported))
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """A field that holds fields; empty where it is absent or null.

        Raises:
            ValueError: it holds something else.
        """
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.unsupported(name, value, "a mapping or null")
        return dict(value)

    def unsupported(self, name: str, value: Any, supported: str) -> ValueError:
        """The error for a field that asks for what our network does not do."""
        return ValueError(f"{self.path}: {name} is {value!r}; supported: {supported}")


class Family:
    """A Hugging Face architecture that computes what some of our configurations compute.

    Subclasses say which (``needs``, ``misfits``) and translate the configuration. The tensor names default to
    ours, which are those of Llama.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    classifier: ClassVar[str]
    """The same network with a score for a head"""
    needs: ClassVar[Mapping[str, Any]]
    """Settings of GPTConfig that the architecture fixes"""

    def misfits(self, config: GPTConfig) -> list[str]:
        """Why the architecture cannot express ``config``: one phrase per setting, empty where it can."""
        return [
            f"{name} is {value!r} (needs {needed!r})"
            for name, needed in self.needs.items()
            if (value := getattr(config, name)) != needed
        ]

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """``config`` as fields of config.json."""
        raise NotImplementedError

    def read(self, fields: Fields) -> dict[str, Any]:
        """The settings of GPTConfig that a config.json describes, as ``GPTConfig.from_dict`` takes them.

        Raises:
            ValueError: a field is missing or asks for something our network does not do.
        """
        raise NotImplementedError

    def layout(self, names: Iterable[str]) -> list[FileTensor]:
        """The tensors of a file that holds our tensors ``names``."""
        return [FileTensor(name, (name,)) for name in names]

    def canonical(self, name: str) -> str | None:
        """The name that ``layout`` uses for a tensor of somebody's file; None for one that holds no weights."""
        return None if name.endswith(".rotary_emb.inv_freq") else name


class RotaryFamily(Family):
    """What Llama, Qwen2 and Qwen3 share: pre-norm RMSNorm, rotary positions, SwiGLU."""

    needs = {"norm": "rmsnorm", "norm_placement": "pre", "positions": "rope", "feed_forward": "swiglu"}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """The fields that the three have in common."""
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

    def read(self, fields: Fields) -> dict[str, Any]:
        """The settings that the three have in common."""
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
    """Rotary settings as transformers 5 reads them (rope_parameters) and as older readers do (the other two)."""
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


def read_rope(fields: Fields) -> tuple[float, dict[str, Any] | None]:
    """Base of the wavelengths and their scaling, from the new spelling or the old one."""
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
    if surplus := sorted(rope.keys() - known):
        raise fields.unsupported(f"{name}.{surplus[0]}", rope[surplus[0]], f"rope_type {kind!r} without it")
    if missing := sorted(known - rope.keys()):
        raise ValueError(f"{fields.path}: {name}.{missing[0]} is missing")
    if kind == "default":
        return float(theta), None
    return float(theta), {_LLAMA3[name]: value for name, value in rope.items()}


def refuse_sliding_window(fields: Fields) -> None:
    """Refuse attention that does not see the whole context."""
    if fields.get("use_sliding_window", False):
        raise fields.unsupported("use_sliding_window", True, "False (attention over the whole context)")
    for kind in fields.get("layer_types", []):
        if kind != "full_attention":
            raise fields.unsupported("layer_types", kind, "'full_attention' in every layer")


def rename(name: str, table: Mapping[str, str]) -> str:
    """``name`` with the first pattern of ``table`` that matches replaced.

    Raises:
        KeyError: none matches.
    """
    for pattern, replacement in table.items():
        renamed, count = re.subn(f"^{pattern}$", replacement, name)
        if count:
            return renamed
    raise KeyError(name)
