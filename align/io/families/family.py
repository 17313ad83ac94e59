"""A family of Hugging Face checkpoints: how its config.json and its tensor names map to ours."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

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
    """The fields of a config.json, read with errors that name file, field and value.

    Attributes:
        values: what the file states.
        path: the file.
        defaults: what a field that the file does not have means; a null in the file does not mean this.
    """

    def __init__(self, values: Mapping[str, Any], path: Path, defaults: Mapping[str, Any] | None = None) -> None:
        """Wrap the parsed ``values`` of the file ``path``."""
        self.values = values
        self.path = path
        self.defaults = {} if defaults is None else defaults

    def over(self, defaults: Mapping[str, Any]) -> "ConfigJson":
        """The same fields with ``defaults``."""
        return ConfigJson(self.values, self.path, defaults)

    def get(self, name: str, default: Any = _UNSET) -> Any:
        """A field's value; ``default`` where it is absent or null.

        Raises:
            ValueError: the field is absent and has no default.
        """
        value = self._value(name, None)
        if value is not None:
            return value
        if default is _UNSET:
            raise ValueError(f"{self.path}: {name} is missing")
        return default

    def only(self, name: str, *supported: Any, default: Any = _UNSET) -> Any:
        """A field's value, which must be one of ``supported``; ``default`` where it is absent.

        Raises:
            ValueError: it is none of them.
        """
        value = self._value(name, default)
        if value not in supported:
            raise self.unsupported(name, value, " or ".join(repr(known) for known in supported))
        return value

    def count(self, name: str, *, null: Any = _UNSET) -> Any:
        """A field that is an integer from 1 on; ``null`` where it is null.

        Raises:
            ValueError: it is something else.
        """
        return self._typed(name, null, self.as_count)

    def number(self, name: str, *, null: Any = _UNSET) -> Any:
        """A field that is a finite number, as a float; ``null`` where it is null.

        Raises:
            ValueError: it is something else.
        """
        return self._typed(name, null, self.as_number)

    def flag(self, name: str) -> bool:
        """A field that is true or false.

        Raises:
            ValueError: it is something else.
        """
        return bool(self._typed(name, _UNSET, self.as_flag))

    def items(self, name: str) -> list[Any] | None:
        """A field that is a list; None where it is null.

        Raises:
            ValueError: it is something else.
        """
        return cast(list[Any] | None, self._typed(name, None, self._as_list))

    def mapping(self, name: str) -> dict[str, Any]:
        """A field that is an object; empty where it is absent or null.

        Raises:
            ValueError: it is something else.
        """
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.unsupported(name, value, "an object or null")
        return dict(value)

    def as_count(self, name: str, value: Any) -> int:
        """``value``, the field ``name``, which must be an integer from 1 on."""
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.unsupported(name, value, "an integer, at least 1")
        return value

    def as_number(self, name: str, value: Any) -> float:
        """``value``, the field ``name``, which must be a finite number."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.unsupported(name, value, "a number")
        return float(value)

    def as_flag(self, name: str, value: Any) -> bool:
        """``value``, the field ``name``, which must be true or false."""
        if not isinstance(value, bool):
            raise self.unsupported(name, value, "true or false")
        return value

    def _as_list(self, name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.unsupported(name, value, "a list or null")
        return value

    def _typed(self, name: str, null: Any, check: Callable[[str, Any], Any]) -> Any:
        value = self._value(name, _UNSET)
        return null if value is None and null is not _UNSET else check(name, value)

    def _value(self, name: str, default: Any) -> Any:
        """A field's value; ``default`` where it is absent."""
        value = self.values.get(name, self.defaults.get(name, default))
        if value is _UNSET:
            raise ValueError(f"{self.path}: {name} is missing")
        return value

    def unsupported(self, name: str, value: Any, supported: str) -> ValueError:
        """The error for a field that asks for something our network does not support."""
        return ValueError(f"{self.path}: {name} is {value!r}; supported: {supported}")

    def conflict(self, name: str, value: Any, other: str, effective: Any) -> ValueError:
        """The error for a field that another one overrides."""
        return ValueError(
            f"{self.path}: {name} is {value!r}, but {other}, which has priority, is {effective!r}; "
            f"make them equal or remove {name}"
        )


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
    defaults: ClassVar[Mapping[str, Any]] = {}
    """What fields of config.json mean where a file does not have them: the defaults of transformers' class"""

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


ROTARY_DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "silu",
    "num_key_value_heads": None,
    "head_dim": None,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "embedding_std": 0.02,
}
"""Of most rotary families"""


class RotaryFamily(Family):
    """What most families share: RMSNorm, rotary positions, a gated feed-forward layer."""

    free = frozenset({"rope_scaling"})
    act: ClassVar[tuple[str, str]] = ("hidden_act", "silu")
    """Field and value of the activation function"""
    defaults = ROTARY_DEFAULTS
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
        fields.only(*self.act)
        rope = self.read_rope(fields)
        if rope["rope_fraction"] != 1.0:
            raise fields.unsupported("partial_rotary_factor", rope["rope_fraction"], "1.0")
        heads = fields.count("num_attention_heads")
        return {
            **self.needs,
            "vocab_size": fields.count("vocab_size"),
            "width": fields.count("hidden_size"),
            "ff_width": fields.count("intermediate_size"),
            "layers": fields.count("num_hidden_layers"),
            "heads": heads,
            "kv_heads": fields.count("num_key_value_heads", null=heads),
            "head_width": fields.count("head_dim", null=None if self.defaults["head_dim"] is None else _UNSET),
            "context": fields.count("max_position_embeddings"),
            "norm_eps": fields.number("rms_norm_eps"),
            "tied_embeddings": fields.flag("tie_word_embeddings"),
            "dropout": fields.number("attention_dropout", null=0.0),
            "init_std": fields.number("initializer_range"),
            "embedding_std": fields.number("embedding_std"),
            **rope,
        }

    def read_rope(self, fields: ConfigJson) -> dict[str, Any]:
        """RoPE settings."""
        return read_rope(fields, theta=self.theta)


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


def read_rope(
    fields: ConfigJson,
    *,
    theta: float,
    fraction: float = 1.0,
    names: tuple[str, str] = ("rope_theta", "partial_rotary_factor"),
) -> dict[str, Any]:
    """RoPE settings by transformers' rule: of ``rope_scaling`` where it is not empty, else of ``rope_parameters``.

    Args:
        fields: config.json.
        theta: base of a file that has none.
        fraction: share of rotated components of a file that has none.
        names: the fields with base and share, which are read where the object does not have them.

    Raises:
        ValueError: a field is missing, not supported, or contradicts the one that transformers uses instead.
    """
    objects = {name: fields.mapping(name) for name in ("rope_scaling", "rope_parameters")}
    name, unused = objects if objects["rope_scaling"] else reversed(objects)
    original = fields.count(_ORIGINAL, null=None) if _ORIGINAL in fields.values else None
    scaling = read_scaling(fields, name, objects[name], original=original)
    other = read_scaling(fields, unused, objects[unused], original=original)
    if name == "rope_parameters":
        clash = scaling is not None and unused in fields.values
    else:  # transformers 5 writes rope_parameters without scaling; then somebody adds rope_scaling
        clash = other is not None and other != scaling
    if clash:
        raise fields.conflict(unused, fields.values[unused], name, objects[name])
    settled = [
        settle(
            fields,
            {f"{name}.{key}": objects[name].get(key), field: fields.values.get(field)},
            {key: fields.values.get(key), f"{unused}.{key}": objects[unused].get(key)},
            default=default,
        )
        for key, field, default in zip(("rope_theta", "partial_rotary_factor"), names, (theta, fraction), strict=True)
    ]
    return {"rope_theta": settled[0], "rope_fraction": settled[1], "rope_scaling": scaling}


def settle(
    fields: ConfigJson, sources: Mapping[str, Any], ignored: Mapping[str, Any] | None = None, *, default: float
) -> float:
    """A number that several fields may state.

    Args:
        fields: config.json.
        sources: fields and values by priority; None: not stated.
        ignored: the same of fields that transformers does not read.
        default: where no source states it.

    Raises:
        ValueError: one of them states another number, or no number.
    """
    stated = {name: fields.as_number(name, value) for name, value in sources.items() if value is not None}
    source, value = next(iter(stated.items()), (f"the default of {[*sources][-1]}", default))
    for name, other in {**(ignored or {}), **stated}.items():
        if other is not None and fields.as_number(name, other) != value:
            raise fields.conflict(name, other, source, value)
    return value


_ORIGINAL = "original_max_position_embeddings"


def read_scaling(
    fields: ConfigJson, name: str, rope: Mapping[str, Any], *, original: int | None = None
) -> dict[str, Any] | None:
    """Our RoPE scaling from an object of config.json, as ``GPTConfig.from_dict`` takes it; None: unscaled.

    Args:
        fields: config.json.
        name: path of ``rope`` in it.
        rope: the object; base and share of rotated components are not read.
        original: trained context, whatever the object states; None: the object's, or else the maximum context.

    Raises:
        ValueError: a field is missing or not supported.
    """
    rope = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    old_kind = rope.pop("type", None)
    kind = rope.pop("rope_type", old_kind) or "default"
    if kind != "default" and kind not in _SCALINGS:
        known = " or ".join(map(repr, ("default", *_SCALINGS)))
        raise fields.unsupported(f"{name}.rope_type", kind, known)
    scaling, names = _SCALINGS.get(kind, (None, {}))
    stated_original = rope.pop(_ORIGINAL, None)
    if _ORIGINAL in names:
        rope[_ORIGINAL] = original or stated_original or fields.count("max_position_embeddings")
    if kind == "yarn":
        _read_yarn(fields, name, rope)
    rope = {key: value for key, value in rope.items() if value is not None}
    if unknown := sorted(rope.keys() - names):
        raise fields.unsupported(f"{name}.{unknown[0]}", rope[unknown[0]], f"rope_type {kind!r} without it")
    needed = names if kind == "llama3" else names.keys() & {"factor"}
    if missing := sorted(needed - rope.keys()):
        raise ValueError(f"{fields.path}: {name}.{missing[0]} is missing")
    if scaling is None:
        return None
    checks = {_ORIGINAL: fields.as_count, "truncate": fields.as_flag}
    values = {key: checks.get(key, fields.as_number)(f"{name}.{key}", value) for key, value in rope.items()}
    return {"kind": scaling.__name__} | {names[key]: value for key, value in values.items()}


def _read_yarn(fields: ConfigJson, name: str, rope: dict[str, Any]) -> None:
    """Complete the fields of YaRN, as transformers does."""
    if "factor" in rope and rope["factor"] is None:
        original = fields.as_count(f"{name}.{_ORIGINAL}", rope[_ORIGINAL])
        rope["factor"] = fields.count("max_position_embeddings") / original
    for beta in ("beta_fast", "beta_slow"):
        if rope.get(beta) == 0:
            del rope[beta]
    scales = [rope.pop(key, None) for key in ("mscale", "mscale_all_dim")]
    if all(scales) and rope.get("factor") is not None and rope.get("attention_factor") is None:
        factor = fields.as_number(f"{name}.factor", rope["factor"])
        above, below = (0.1 * fields.as_number(f"{name}.mscale", scale) * math.log(factor) + 1.0 for scale in scales)
        rope["attention_factor"] = above / below


def read_windows(fields: ConfigJson, sliding: Sequence[bool]) -> dict[str, Any]:
    """Sliding-window settings.

    Args:
        fields: config.json.
        sliding: for each block, whether it has a window in a file that has no ``layer_types``.

    Raises:
        ValueError: ``layer_types`` has another kind of layer, or not one for each block.
    """
    kinds = fields.items("layer_types") if "layer_types" in fields.values else None
    window = fields.count("sliding_window", null=None)
    if kinds is not None:
        if len(kinds) != len(sliding):
            raise fields.unsupported("layer_types", kinds, f"one kind for each of {len(sliding)} layers")
        for kind in kinds:
            if kind not in LAYER_KINDS:
                raise fields.unsupported("layer_types", kind, " or ".join(map(repr, LAYER_KINDS)))
        sliding = [kind == "sliding_attention" for kind in kinds]
    blocks = [number for number, has_window in enumerate(sliding) if has_window]
    if window is None or not blocks:
        return {}
    return {"window": window, "window_layers": None if all(sliding) else blocks}


def write_windows(config: GPTConfig) -> dict[str, Any]:
    """Sliding-window settings as transformers' fields."""
    kinds = [LAYER_KINDS[config.window_of(layer) is not None] for layer in range(config.layers)]
    return {"sliding_window": config.window, "layer_types": kinds}


LAYER_KINDS = ("full_attention", "sliding_attention")


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
