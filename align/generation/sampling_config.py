"""How tokens are drawn: one frozen dataclass, checked at construction. Needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn.

    Raises:
        ValueError: a setting is impossible; the message names it, its value, and what would be right.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token"""
    top_k: int = 0
    """Draw among this many most probable tokens; 0: all"""
    top_p: float = 1.0
    """Draw among the fewest most probable tokens whose probabilities reach this; 1: all"""
    min_p: float = 0.0
    """Draw among tokens at least this share of the most probable one's probability; 0: all"""
    repetition_penalty: float = 1.0
    """Positive logits of tokens already in the row are divided by this, negative ones multiplied; 1: none"""
    max_new_tokens: int = 128
    """Longest response, tokens"""

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        rules = {
            "temperature": (0 <= self.temperature < float("inf"), "0 or above"),
            "top_k": (self.top_k >= 0, "0 (all) or above"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
        }
        for name, (holds, right) in rules.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {right}")
