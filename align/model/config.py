"""The configuration of a GPT: one frozen dataclass, checked at construction."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from math import isfinite
from typing import Any, Literal, get_args, get_type_hints


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 scaling of RoPE frequencies, for contexts longer than the trained one.

    Raises:
        ValueError: a setting is invalid; the message names it, its value and the valid range.
    """

    factor: float = 8.0
    """Divisor of low frequencies"""
    low_freq_factor: float = 1.0
    """Frequencies of wavelengths above original_context / this are divided by factor"""
    high_freq_factor: float = 4.0
    """Frequencies of wavelengths below original_context / this are unchanged"""
    original_context: int = 8192
    """Context the network was trained with, tokens"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        _require("rope_scaling.factor", self.factor, self.factor >= 1, "at least 1")
        _require("rope_scaling.low_freq_factor", self.low_freq_factor, self.low_freq_factor > 0, "above 0")
        _require(
            "rope_scaling.high_freq_factor",
            self.high_freq_factor,
            self.high_freq_factor > self.low_freq_factor,
            f"above rope_scaling.low_freq_factor ({self.low_freq_factor})",
        )
        _require_count("rope_scaling.original_context", self.original_context)


@dataclass(frozen=True)
class GPTConfig:
    """The configuration of a GPT.

    Llama-style by default. docs/model.md lists the combinations that have a Hugging Face equivalent.

    Raises:
        ValueError: a setting is invalid; the message names it, its value and the valid range.
    """

    vocab_size: int = 4096
    """Rows of the token embedding; at least the tokenizer's size"""
    layers: int = 6
    """Transformer blocks"""
    heads: int = 6
    """Query heads"""
    kv_heads: int | None = None
    """Key/value heads (grouped-query attention); None: equal to heads"""
    width: int = 384
    """Width of the residual stream"""
    head_width: int | None = None
    """Width of one head; None: width / heads"""
    ff_width: int | None = None
    """Feed-forward hidden width; None: 8/3 width for swiglu (rounded up to a multiple of 32), 4 width for gelu"""
    context: int = 256
    """Maximum sequence length, tokens"""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Kind of normalization"""
    norm_placement: Literal["pre", "post"] = "pre"
    """Normalize before each sub-layer (pre) or after its residual sum (post)"""
    norm_eps: float = 1e-5
    """Added to the variance"""
    positions: Literal["rope", "learned", "sinusoidal"] = "rope"
    """Kind of position encoding"""
    rope_theta: float = 10000.0
    """RoPE base"""
    rope_scaling: RopeScaling | None = None
    """Llama-3 RoPE scaling; None: none"""
    feed_forward: Literal["swiglu", "gelu"] = "swiglu"
    """Kind of feed-forward layer"""
    qkv_bias: bool = False
    """Biases on the query, key and value projections"""
    bias: bool = False
    """Biases on all other linear layers, and on layernorm"""
    qk_norm: bool = False
    """RMSNorm on each head's queries and keys (Qwen3)"""
    tied_embeddings: bool = True
    """Use the token embedding as the output matrix"""
    init_std: float = 0.02
    """Standard deviation of initial matrices; projections into the residual stream get init_std / sqrt(2 layers)"""
    embedding_std: float = 0.02
    """Standard deviation of the initial token embedding; 1.0 with an untied head helps small models learn to copy"""
    dropout: float = 0.0
    """Probability of zeroing attention weights and sub-layer outputs while training"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        for name in ("vocab_size", "layers", "heads", "width", "context"):
            _require_count(name, getattr(self, name))
        for name in ("kv_heads", "head_width", "ff_width"):
            if getattr(self, name) is not None:
                _require_count(name, getattr(self, name))
        for name, kind in get_type_hints(GPTConfig).items():
            if name in _CHOICES:
                _require(name, getattr(self, name), getattr(self, name) in get_args(kind), f"one of {get_args(kind)}")
        kv_heads, heads = self.resolved_kv_heads, self.heads
        _require("kv_heads", kv_heads, heads % kv_heads == 0, f"a divisor of heads ({heads})")
        if self.head_width is None:
            _require("heads", heads, self.width % heads == 0, f"a divisor of width ({self.width}), or set head_width")
        if self.positions == "rope":
            head_width = self.resolved_head_width
            _require("head_width", head_width, head_width % 2 == 0, "even, because rope rotates pairs")
        else:
            _require("rope_scaling", self.rope_scaling, self.rope_scaling is None, "None unless positions is rope")
        if self.positions == "sinusoidal":
            _require("width", self.width, self.width % 2 == 0, "even: sinusoidal positions are sine-cosine pairs")
        for name in ("norm_eps", "rope_theta", "init_std", "embedding_std"):
            value = getattr(self, name)
            _require(name, value, isfinite(value) and value > 0, "above 0")
        _require("dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)")

    @property
    def resolved_kv_heads(self) -> int:
        """Key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def resolved_head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def resolved_ff_width(self) -> int:
        """Hidden width of the feed-forward layer."""
        if self.ff_width is not None:
            return self.ff_width
        return 4 * self.width if self.feed_forward == "gelu" else -(-8 * self.width // (3 * 32)) * 32

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; the inverse of ``from_dict``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "GPTConfig":
        """Build a config from the values of ``to_dict``.

        Raises:
            ValueError: a key is unknown (the message names the nearest one) or a value is invalid.
        """
        values = _known(cls, settings)
        if isinstance(scaling := values.get("rope_scaling"), Mapping):
            values["rope_scaling"] = RopeScaling(**_known(RopeScaling, scaling))
        return cls(**values)


_CHOICES = ("norm", "norm_placement", "positions", "feed_forward")


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {expected}")


def _require_count(name: str, value: object) -> None:
    _require(
        name, value, isinstance(value, int) and not isinstance(value, bool) and value >= 1, "an integer, at least 1"
    )


def _known(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    for key in settings:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            raise ValueError(
                f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {names}")
            )
    return dict(settings)
