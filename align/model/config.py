"""The configuration of a GPT: one frozen dataclass, checked at construction."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal, get_args, get_type_hints

from align.model.rope_scaling import RopeScaling, scaling_from_dict
from align.model.settings import known, require, require_count


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
    """Feed-forward hidden width; None: 8/3 width where it is gated (rounded up to a multiple of 32), else 4 width"""
    context: int = 256
    """Maximum sequence length, tokens"""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Kind of normalization"""
    norm_placement: Literal["pre", "post", "output", "both"] = "pre"
    """What is normalized: a sub-layer's input (pre), the residual sum after it (post), its output (output: OLMo-2), or
    its input and output (both: Gemma 2 and 3)"""
    norm_offset: bool = False
    """RMSNorm multiplies by 1 + weight instead of weight (Gemma)"""
    norm_eps: float = 1e-5
    """Added to the variance"""
    positions: Literal["rope", "learned", "sinusoidal"] = "rope"
    """Kind of position encoding"""
    rope_theta: float = 10000.0
    """RoPE base"""
    rope_scaling: RopeScaling | None = None
    """RoPE for contexts longer than the trained one: LinearScaling, Llama3Scaling or YarnScaling; None: unscaled"""
    rope_fraction: float = 1.0
    """Share of each head's components that RoPE rotates, from the first on (GPT-NeoX: 0.25)"""
    no_rope_layers: tuple[int, ...] = ()
    """Blocks, from 0, without position encoding (SmolLM3); only with rope"""
    window: int | None = None
    """Sliding-window attention: a token sees itself and the window - 1 tokens before it; None: everything before it"""
    window_layers: tuple[int, ...] | None = None
    """Blocks, from 0, that ``window`` applies to (Gemma alternates); None: all"""
    window_rope_theta: float | None = None
    """RoPE base of the blocks with a window, whose frequencies are not scaled (Gemma 3); None: as in other blocks"""
    attention_scale: float | None = None
    """Factor of query-key products; None: 1 / sqrt(head width)"""
    attention_softcap: float | None = None
    """Softcap c of attention scores s: c tanh(s / c) (Gemma 2); None: none"""
    logit_softcap: float | None = None
    """Softcap of the output logits, as ``attention_softcap``"""
    parallel_residual: bool = False
    """Attention and feed-forward layer read the same residual stream (GPT-NeoX); only with norm_placement pre"""
    scale_embeddings: bool = False
    """Multiply token embeddings by sqrt(width), rounded to their dtype (Gemma)"""
    feed_forward: Literal["swiglu", "geglu", "gelu", "gelu_exact"] = "swiglu"
    """Kind of feed-forward layer: gated by silu or by tanh GELU, or plain with tanh or exact GELU"""
    qkv_bias: bool = False
    """Biases on the query, key and value projections"""
    bias: bool = False
    """Biases on all other linear layers, and on layernorm"""
    qk_norm: Literal["none", "head", "all"] = "none"
    """RMSNorm on queries and keys: on each head's (head: Qwen3, Gemma 3), or on those of all heads together (all:
    OLMo-2)"""
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
            require_count(name, getattr(self, name))
        for name in ("kv_heads", "head_width", "ff_width"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        for name, kind in get_type_hints(GPTConfig).items():
            if name in _CHOICES:
                require(name, getattr(self, name), getattr(self, name) in get_args(kind), f"one of {get_args(kind)}")
        kv_heads, heads = self.resolved_kv_heads, self.heads
        require("kv_heads", kv_heads, heads % kv_heads == 0, f"a divisor of heads ({heads})")
        if self.head_width is None:
            require("heads", heads, self.width % heads == 0, f"a divisor of width ({self.width}), or set head_width")
        for name in ("no_rope_layers", "window_layers"):
            if (blocks := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(blocks))  # JSON and YAML have lists
                right = sorted({block for block in blocks if 0 <= block < self.layers})
                require(name, blocks, list(blocks) == right, f"ascending indices of blocks, 0 to {self.layers - 1}")
        if self.positions == "rope":
            rotated = self.rotated_width
            name = "head_width" if self.rope_fraction == 1 else "rope_fraction"
            require(
                name, getattr(self, name) or rotated, rotated > 0 and rotated % 2 == 0, "such that rope rotates pairs"
            )
        for name, default in _ROPE_ONLY.items():
            value = getattr(self, name)
            require(name, value, self.positions == "rope" or value == default, f"{default} unless positions is rope")
        require("rope_fraction", self.rope_fraction, 0 < self.rope_fraction <= 1, "in (0, 1]")
        scaling = self.rope_scaling
        require("rope_scaling", scaling, scaling is None or isinstance(scaling, RopeScaling), "a RopeScaling or None")
        if self.window is not None:
            require_count("window", self.window)
        for name in ("window_layers", "window_rope_theta"):
            value = getattr(self, name)
            require(name, value, self.window is not None or value is None, "None unless window is set")
        for name in ("window_rope_theta", "attention_scale", "attention_softcap", "logit_softcap"):
            value = getattr(self, name)
            require(name, value, value is None or (isfinite(value) and value > 0), "above 0, or None")
        parallel, placement = self.parallel_residual, self.norm_placement
        require("parallel_residual", parallel, not parallel or placement == "pre", "false unless norm_placement is pre")
        require("norm_offset", self.norm_offset, not self.norm_offset or self.norm == "rmsnorm", "false with layernorm")
        if self.positions == "sinusoidal":
            require("width", self.width, self.width % 2 == 0, "even: sinusoidal positions are sine-cosine pairs")
        for name in ("norm_eps", "rope_theta", "init_std", "embedding_std"):
            value = getattr(self, name)
            require(name, value, isfinite(value) and value > 0, "above 0")
        require("dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)")

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
        return -(-8 * self.width // (3 * 32)) * 32 if self.gated else 4 * self.width

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a gate."""
        return self.feed_forward in ("swiglu", "geglu")

    @property
    def rotated_width(self) -> int:
        """Components of each head that RoPE rotates."""
        return int(self.resolved_head_width * self.rope_fraction)

    def window_of(self, layer: int) -> int | None:
        """The window of block ``layer``, tokens; None if it attends to everything before."""
        return self.window if self.window_layers is None or layer in self.window_layers else None

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; the inverse of ``from_dict``."""
        scaling = self.rope_scaling
        return asdict(self) | {"rope_scaling": None if scaling is None else scaling.to_dict()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "GPTConfig":
        """Build a config from the values of ``to_dict``.

        Raises:
            ValueError: a key is unknown (the message names the nearest one) or a value is invalid.
        """
        values = known(cls, settings)
        if isinstance(scaling := values.get("rope_scaling"), Mapping):
            values["rope_scaling"] = scaling_from_dict(scaling)
        return cls(**values)


_CHOICES = ("norm", "norm_placement", "positions", "feed_forward", "qk_norm")

_ROPE_ONLY = {
    "rope_scaling": None,
    "rope_fraction": 1.0,
    "no_rope_layers": (),
    "window_rope_theta": None,
}
