"""A family of Hugging Face checkpoints: how its config.json and its tensor names map to ours."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from align.model.config import GPTConfig
from align.model.rope_scaling import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

_UNSET: Any = object()

_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_context",
}

_YARN = {
    "factor": "factor",
    "original_max_position_embeddings": "original_context",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
}

_SCALINGS: dict[str, tuple[type[RopeScaling], Mapping[str, str]]] = {
    "linear": (LinearScaling, {"factor": "factor"}),
    "llama3": (Llama3Scaling, _LLAMA3),
    "yarn": (YarnScaling, _YARN),
}
"""By transformers' rope_type: our class, and their fields -> its settings"""


class FileTensor(NamedTuple):
    """A tensor of a weight file, made of one or more of ours.

    Attributes:
        name: its name in the file.
        parts: names of our tensors, concatenated along their first axis.
        transposed: the file has ``[in, out]`` where we have ``[out, in]``.
        groups: how many equal groups of rows each part is split into before, so that group i of every part is adjacent.
    """

    name: str
    parts: tuple[str, ...]
    transposed: bool = False
    groups: int = 1


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


STRUCTURE = (
    "norm",
    "norm_placement",
    "norm_offset",
    "positions",
    "rope_scaling",
    "rope_fraction",
    "no_rope_layers",
    "window",
    "window_layers",
    "window_rope_theta",
    "attention_scale",
    "attention_softcap",
    "logit_softcap",
    "parallel_residual",
    "scale_embeddings",
    "feed_forward",
    "qkv_bias",
    "bias",
    "qk_norm",
)
"""Settings of GPTConfig that change what the network computes, rather than its size"""


class Family:
    """A Hugging Face architecture that is equivalent to some of our configurations.

    Subclasses say which (``needs``, ``free``, ``misfits``) and translate the configuration. Tensor names default to
    ours, which are Llama's.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    classifier: ClassVar[str]
    """The same network with a scalar head"""
    needs: ClassVar[Mapping[str, Any]]
    """Settings of STRUCTURE that the architecture fixes, where they are not GPTConfig's defaults"""
    free: ClassVar[frozenset[str]] = frozenset()
    """Settings of STRUCTURE that its files state"""

    def misfits(self, config: GPTConfig) -> list[str]:
        """Why the architecture can't express ``config``: one phrase per setting; empty if it can."""
        fixed = {name: getattr(GPTConfig, name) for name in STRUCTURE if name not in self.free} | dict(self.needs)
        return [
            f"{name} is {value!r} (needs {needed!r})"
            for name, needed in fixed.items()
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

    def layout(self, names: Iterable[str], config: GPTConfig) -> list[FileTensor]:
        """The tensors of a file for our tensors ``names``."""
        return [FileTensor(name, (name,)) for name in names]

    def canonical(self, name: str) -> str | None:
        """The name that ``layout`` uses for a tensor found in a file; None for a buffer, which is skipped."""
        return None if name.endswith(".rotary_emb.inv_freq") else name


class RotaryFamily(Family):
    """What most families share: RMSNorm, rotary positions, a gated feed-forward layer."""

    free = frozenset({"rope_scaling"})
    act: ClassVar[tuple[str, str]] = ("hidden_act", "silu")
    """Field and value of the activation function"""
    head_width: ClassVar[int | None] = None
    """What a file that has no head_dim means; None: hidden_size / num_attention_heads"""
    tied: ClassVar[bool] = False
    """What a file that has no tie_word_embeddings means"""
    theta: ClassVar[float] = 10_000.0
    """RoPE base of a file that has none"""

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """The fields that all of them share."""
        field, act = self.act
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.width,
            "intermediate_size": config.resolved_ff_width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.resolved_kv_heads,
            "head_dim": config.resolved_head_width,
            field: act,
            "max_position_embeddings": config.context,
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tied_embeddings,
            "attention_dropout": config.dropout,
            "initializer_range": config.init_std,
            "embedding_std": config.embedding_std,
            **write_rope(config),
        }

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """The settings that all of them share."""
        field, act = self.act
        fields.only(field, act, default=act)
        rope = self.read_rope(fields)
        if rope["rope_fraction"] != 1.0:
            raise fields.unsupported("partial_rotary_factor", rope["rope_fraction"], "1.0")
        return {
            **self.needs,
            "vocab_size": fields.get("vocab_size"),
            "width": fields.get("hidden_size"),
            "ff_width": fields.get("intermediate_size"),
            "layers": fields.get("num_hidden_layers"),
            "heads": fields.get("num_attention_heads"),
            "kv_heads": fields.get("num_key_value_heads", fields.get("num_attention_heads")),
            "head_width": fields.get("head_dim", self.head_width),
            "context": fields.get("max_position_embeddings"),
            "norm_eps": fields.get("rms_norm_eps", 1e-6),
            "tied_embeddings": fields.get("tie_word_embeddings", self.tied),
            "dropout": fields.get("attention_dropout", 0.0),
            "init_std": fields.get("initializer_range", 0.02),
            "embedding_std": fields.get("embedding_std", 0.02),
            **rope,
        }

    def read_rope(self, fields: ConfigJson) -> dict[str, Any]:
        """RoPE settings."""
        return read_rope(fields, default_theta=self.theta)


def write_rope(config: GPTConfig) -> dict[str, Any]:
    """RoPE settings for transformers 5 (rope_parameters) and for older readers (the other two)."""
    rope = rope_fields(config.rope_scaling)
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.rope_scaling else None,
        "rope_parameters": {"rope_theta": config.rope_theta, **rope},
    }


def rope_fields(scaling: RopeScaling | None) -> dict[str, Any]:
    """RoPE scaling as transformers' fields."""
    for kind, (ours, names) in _SCALINGS.items():
        if type(scaling) is ours:
            values = {theirs: getattr(scaling, name) for theirs, name in names.items()}
            return {"rope_type": kind} | {name: value for name, value in values.items() if value is not None}
    return {"rope_type": "default"}


def read_rope(fields: ConfigJson, *, default_theta: float = 10000.0, default_fraction: float = 1.0) -> dict[str, Any]:
    """RoPE settings, from transformers 5's fields or the older ones."""
    name = "rope_parameters" if fields.mapping("rope_parameters") else "rope_scaling"
    theta, fraction = fields.get("rope_theta", default_theta), fields.get("partial_rotary_factor", default_fraction)
    return rope_settings(fields, name, fields.mapping(name), theta=theta, fraction=fraction)


def rope_settings(
    fields: ConfigJson, name: str, rope: dict[str, Any], *, theta: float, fraction: float = 1.0
) -> dict[str, Any]:
    """Our RoPE settings from an object of config.json.

    Args:
        fields: config.json.
        name: path of ``rope`` in it.
        rope: the object.
        theta: base, where it has none.
        fraction: share of rotated components, where it has none.

    Raises:
        ValueError: a field is missing or not supported.
    """
    rope = {key: value for key, value in rope.items() if value is not None}
    theta, fraction = rope.pop("rope_theta", theta), rope.pop("partial_rotary_factor", fraction)
    old_kind = rope.pop("type", "default")
    kind = rope.pop("rope_type", old_kind)
    found: dict[str, Any] = {"rope_theta": float(theta), "rope_fraction": float(fraction), "rope_scaling": None}
    if kind != "default" and kind not in _SCALINGS:
        raise fields.unsupported(
            f"{name}.rope_type", kind, " or ".join(repr(known) for known in ("default", *_SCALINGS))
        )
    scaling, names = _SCALINGS.get(kind, (None, {}))
    if kind == "yarn":
        _read_yarn(fields, rope)
    elif kind != "llama3":
        rope.pop("original_max_position_embeddings", None)  # without effect
    if unknown := sorted(rope.keys() - names):
        raise fields.unsupported(f"{name}.{unknown[0]}", rope[unknown[0]], f"rope_type {kind!r} without it")
    needed = names if kind == "llama3" else names.keys() & {"factor"}
    if missing := sorted(needed - rope.keys()):
        raise ValueError(f"{fields.path}: {name}.{missing[0]} is missing")
    if scaling is not None:
        found["rope_scaling"] = {"kind": scaling.__name__} | {names[key]: value for key, value in rope.items()}
    return found


def _read_yarn(fields: ConfigJson, rope: dict[str, Any]) -> None:
    """Complete the fields of YaRN, as transformers does."""
    rope.setdefault("original_max_position_embeddings", fields.get("max_position_embeddings", None))
    mscale, all_dim = rope.pop("mscale", None), rope.pop("mscale_all_dim", None)
    if mscale and all_dim and "factor" in rope:
        above, below = (0.1 * scale * math.log(rope["factor"]) + 1.0 for scale in (mscale, all_dim))
        rope.setdefault("attention_factor", above / below)


def read_windows(fields: ConfigJson, sliding: Sequence[bool]) -> dict[str, Any]:
    """Sliding-window settings.

    Args:
        fields: config.json.
        sliding: for each block, whether it has a window in a file that has no ``layer_types``.

    Raises:
        ValueError: ``layer_types`` has another kind of layer, or not one for each block.
    """
    kinds = fields.get("layer_types", None)
    window = fields.get("sliding_window", None)
    if kinds is not None:
        if len(kinds) != len(sliding):
            raise fields.unsupported("layer_types", kinds, f"one kind for each of {len(sliding)} layers")
        for kind in kinds:
            if kind not in _LAYER_KINDS:
                raise fields.unsupported("layer_types", kind, " or ".join(map(repr, _LAYER_KINDS)))
        sliding = [kind == "sliding_attention" for kind in kinds]
    blocks = [number for number, has_window in enumerate(sliding) if has_window]
    if window is None or not blocks:
        return {}
    return {"window": window, "window_layers": None if all(sliding) else blocks}


def write_windows(config: GPTConfig) -> dict[str, Any]:
    """Sliding-window settings as transformers' fields."""
    kinds = [_LAYER_KINDS[config.window_of(layer) is not None] for layer in range(config.layers)]
    return {"sliding_window": config.window, "layer_types": kinds}


_LAYER_KINDS = ("full_attention", "sliding_attention")


def renamed(names: Iterable[str], parts: Mapping[str, str]) -> list[FileTensor]:
    """A layout in which the first of ``parts`` that a name contains is replaced."""
    tensors = []
    for name in names:
        ours = next((part for part in parts if part in name), None)
        tensors.append(FileTensor(name if ours is None else name.replace(ours, parts[ours]), (name,)))
    return tensors


_FUSED = re.compile(r"\.self_attn\.([qkv])_proj\.")


def fused_layout(names: Iterable[str], table: Mapping[str, str], *, groups: int = 1) -> list[FileTensor]:
    """A layout in which the query, key and value matrices of a block are one tensor.

    Args:
        names: of our tensors.
        table: patterns of our names and their replacements; q_proj stands for the fused tensor.
        groups: of the rows of a fused tensor, as in ``FileTensor``.
    """
    tensors = []
    for name in names:
        fused = _FUSED.search(name)
        if fused and fused[1] != "q":
            continue
        parts = tuple(_FUSED.sub(f".self_attn.{kind}_proj.", name) for kind in "qkv") if fused else (name,)
        tensors.append(FileTensor(rename(name, table), parts, groups=groups if fused else 1))
    return tensors


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
