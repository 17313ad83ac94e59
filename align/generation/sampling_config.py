"""Sampling settings: one frozen dataclass, checked at construction. Does not need torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are sampled.

    Raises:
        ValueError: a setting is invalid; the message names it, its value and the valid range.
    """

    temperature: float = 1.0
    """Divides the logits; 0: greedy"""
    top_k: int = 0
    """Sample from this many most probable tokens; 0: all"""
    top_p: float = 1.0
    """Sample from the fewest most probable tokens whose probabilities reach this; 1: all"""
    min_p: float = 0.0
    """Sample from tokens with at least this share of the highest probability; 0: all"""
    repetition_penalty: float = 1.0
    """Positive logits of tokens already in the row are divided by this, negative ones multiplied; 1: none"""
    max_new_tokens: int = 128
    """Maximum response length, tokens"""
    dtype: Literal["bfloat16"] | None = None
    """bfloat16: round weights and compute in bfloat16, so that responses come from a slightly different distribution;
    faster on CPUs with bfloat16 instructions; null: the precision of the weights, or of mixed-precision training"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        rules = {
            "temperature": (0 <= self.temperature < float("inf"), "0 or above"),
            "top_k": (self.top_k >= 0, "0 (all) or above"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "dtype": (self.dtype in (None, "bfloat16"), "bfloat16 or null"),
        }
        for name, (valid, expected) in rules.items():
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {expected}")
