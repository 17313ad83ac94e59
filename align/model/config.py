"""The shape of a GPT: one frozen dataclass, checked at construction."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 style stretching of the rotary frequencies to contexts longer than the trained one."""

    factor: float = 8.0
    """By how much low frequencies are divided"""
    low_freq_factor: float = 1.0
    """Wavelengths above original_context / this are divided by factor"""
    high_freq_factor: float = 4.0
    """Wavelengths below original_context / this are left alone"""
    original_context: int = 8192
    """Context the network was trained on, tokens"""


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT.

    Llama-style by default. See docs/model.md for which combinations have a Hugging Face twin.

    Raises:
        ValueError: a setting is impossible; the message names it, its value, and what would be right.
    """

    vocab_size: int = 4096
    """Rows of the token embedding; at least the tokenizer's size"""
    layers: int = 6
    """Transformer blocks"""
    heads: int = 6
    """Query heads"""
    kv_heads: int | None = None
    """Key/value heads (grouped-query attention); None: as many as heads"""
    width: int = 384
    """Width of the residual stream"""
    head_width: int | None = None
    """Width of one head; None: width / heads"""
    ff_width: int | None = None
    """Width inside the feed-forward; None: 8/3 width for swiglu (rounded up to a multiple of 32), 4 width for gelu"""
    context: int = 256
    """Longest sequence, tokens"""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation"""
    norm_placement: Literal["pre", "post"] = "pre"
    """Normalise before each sub-layer (pre) or after its residual sum (post)"""
    norm_eps: float = 1e-5
    """Added to the variance"""
    positions: Literal["rope", "learned", "sinusoidal"] = "rope"
    """How the network knows a token's place"""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths"""
    rope_scaling: RopeScaling | None = None
    """Llama-3 rotary scaling; None: none"""
    feed_forward: Literal["swiglu", "gelu"] = "swiglu"
    """Feed-forward kind"""
    qkv_bias: bool = False
    """Biases on the query, key and value projections"""
    bias: bool = False
    """Biases on every other linear layer, and on layernorm"""
    qk_norm: bool = False
    """RMSNorm on each head's queries and keys (Qwen3)"""
    tied_embeddings: bool = True
    """The output matrix is the token embedding"""
    init_std: float = 0.02
    """Standard deviation of fresh matrices; projections into the residual stream get init_std / sqrt(2 layers)"""
    embedding_std: float = 0.02
    """Standard deviation of the fresh token embedding; 1.0 with an untied head learns to copy sooner in small models"""
    dropout: float = 0.0
    """Probability of zeroing attention weights and sub-layer outputs while training"""
