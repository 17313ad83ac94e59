"""RoPE for contexts longer than the trained one: how the frequencies change.

Legend: E components that are rotated.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from align.model.settings import known, require, require_count

if TYPE_CHECKING:
    import torch


class RopeScaling(ABC):
    """Changes RoPE's frequencies; a subclass is a frozen dataclass.

    Attributes:
        amplitude: multiplies cosine and sine, so queries and keys both.
    """

    amplitude: float = 1.0

    @abstractmethod
    def frequencies(self, powers: "torch.Tensor", theta: float) -> "torch.Tensor":
        """The frequencies for the longer context.

        Args:
            powers: ``[E / 2]`` float32, ``theta ** (2 i / E)``: the reciprocals of the unscaled frequencies.
            theta: RoPE base.

        Returns:
            ``[E / 2]`` float32, radians per token.
        """

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, with the name of the class under ``kind``."""
        return {"kind": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """Positions divided by a factor (position interpolation, Chen et al. 2023, arXiv:2306.15595).

    Raises:
        ValueError: a setting is invalid; the message names it, its value and the valid range.
    """

    factor: float = 1.0
    """Divisor of all frequencies"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        _require_factor(self.factor)

    def frequencies(self, powers: "torch.Tensor", theta: float) -> "torch.Tensor":
        """See the base class."""
        return 1.0 / powers / self.factor


@dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Low frequencies divided, high ones kept, those between interpolated (Llama 3, arXiv:2407.21783).

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
        _require_factor(self.factor)
        require("rope_scaling.low_freq_factor", self.low_freq_factor, self.low_freq_factor > 0, "above 0")
        require(
            "rope_scaling.high_freq_factor",
            self.high_freq_factor,
            self.high_freq_factor > self.low_freq_factor,
            f"above rope_scaling.low_freq_factor ({self.low_freq_factor})",
        )
        require_count("rope_scaling.original_context", self.original_context)

    def frequencies(self, powers: "torch.Tensor", theta: float) -> "torch.Tensor":
        """See the base class."""
        frequencies = 1.0 / powers
        wavelengths = 2 * math.pi / frequencies
        low, high = self.low_freq_factor, self.high_freq_factor
        keep = ((self.original_context / wavelengths - low) / (high - low)).clamp(0, 1)
        return (1 - keep) * frequencies / self.factor + keep * frequencies


@dataclass(frozen=True)
class YarnScaling(RopeScaling):
    """As Llama 3 by turns within the trained context, and queries and keys grow (YaRN, Peng et al., arXiv:2309.00071).

    Raises:
        ValueError: a setting is invalid; the message names it, its value and the valid range.
    """

    factor: float = 4.0
    """Divisor of low frequencies"""
    original_context: int = 32768
    """Context the network was trained with, tokens"""
    beta_fast: float = 32.0
    """Frequencies with more turns than this within original_context are unchanged"""
    beta_slow: float = 1.0
    """Frequencies with fewer turns than this within original_context are divided by factor"""
    attention_factor: float | None = None
    """Multiplies cosine and sine; None: 0.1 ln(factor) + 1 (equation 22)"""
    truncate: bool = True
    """Round the two borders between frequencies outwards to whole indices, as the paper's code does"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        _require_factor(self.factor)
        require_count("rope_scaling.original_context", self.original_context)
        require("rope_scaling.beta_slow", self.beta_slow, self.beta_slow > 0, "above 0")
        require(
            "rope_scaling.beta_fast",
            self.beta_fast,
            self.beta_fast > self.beta_slow,
            f"above rope_scaling.beta_slow ({self.beta_slow})",
        )
        amplitude = self.attention_factor
        require("rope_scaling.attention_factor", amplitude, amplitude is None or amplitude > 0, "above 0, or None")

    @property
    def amplitude(self) -> float:  # type: ignore[override]
        """See the base class."""
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor

    def frequencies(self, powers: "torch.Tensor", theta: float) -> "torch.Tensor":
        """See the base class."""
        pairs = len(powers)
        low, high = (self._index_of(turns, pairs, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        index = powers.new_tensor(range(pairs))
        divided = ((index - low) / max(high - low, 1e-3)).clamp(0, 1)
        return 1.0 / (self.factor * powers) * divided + 1.0 / powers * (1 - divided)

    def _index_of(self, turns: float, pairs: int, theta: float) -> float:
        """The index of the frequency that turns this often within the trained context (section 3.2)."""
        return pairs * math.log(self.original_context / (2 * math.pi * turns)) / math.log(theta)


_KINDS: dict[str, type[RopeScaling]] = {kind.__name__: kind for kind in (LinearScaling, Llama3Scaling, YarnScaling)}


def scaling_from_dict(settings: Mapping[str, Any]) -> RopeScaling:
    """The inverse of ``RopeScaling.to_dict``.

    Raises:
        ValueError: the kind or a setting is unknown, or a value is invalid.
    """
    values = dict(settings)
    kind = values.pop("kind", None)
    require("rope_scaling.kind", kind, kind in _KINDS, f"one of {', '.join(_KINDS)}")
    return _KINDS[kind](**known(_KINDS[kind], values))


def _require_factor(factor: float) -> None:
    require("rope_scaling.factor", factor, factor >= 1, "at least 1")
