"""RoPE scaling in GGUF files: metadata, and for Llama-3's a tensor of divisors.

Legend: E components that are rotated.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from align.io.gguf.metadata import Metadata
from align.model.config import GPTConfig
from align.model.rope_scaling import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling, scaling_from_dict

ROPE_DIVISORS = "rope_freqs.weight"
"""Name of the tensor of divisors"""

_KINDS = {"none": None, "linear": LinearScaling, "yarn": YarnScaling}
"""llama.cpp's types, and our classes"""

_CLOSE = 1e-4
"""Relative difference between divisors that float32 and other programs' rounding explain"""


def scaling_misfits(config: GPTConfig, supported: Sequence[type[RopeScaling]]) -> list[str]:
    """Why llama.cpp can't compute the scaling of ``config``: phrases, empty if it can."""
    scaling = config.rope_scaling
    if scaling is None:
        return []
    if type(scaling) not in supported:
        known = " or ".join(kind.__name__ for kind in supported) or "None"
        return [f"rope_scaling is {type(scaling).__name__} (needs {known})"]
    if isinstance(scaling, YarnScaling) and not scaling.truncate:
        return ["rope_scaling.truncate is False (needs True)"]
    return []


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    """Metadata of a scaling; Llama-3's is in the divisors alone."""
    if isinstance(scaling, LinearScaling):
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    if isinstance(scaling, YarnScaling):
        found = {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(scaling.factor),
            "rope.scaling.original_context_length": scaling.original_context,
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
        }
        if scaling.attention_factor is not None:
            # llama.cpp multiplies it with equation 22's.
            found["rope.scaling.attn_factor"] = scaling.attention_factor / YarnScaling(scaling.factor).amplitude
        return found
    return {}


def read_scaling(
    metadata: Metadata,
    settings: Mapping[str, Any],
    divisors: Sequence[float] | None,
    own: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """The scaling of a file, as ``GPTConfig.from_dict`` takes it.

    Args:
        metadata: of the file.
        settings: of GPTConfig, without scaling.
        divisors: the tensor of divisors, if the file has one.
        own: the scaling that we wrote beside it, if we did.

    Raises:
        ValueError: the type is not supported, or the divisors are not Llama-3's.
    """
    factor = metadata.get("rope.scaling.factor", metadata.get("rope.scale_linear", 1.0))
    kind = metadata.get("rope.scaling.type", "linear")  # llama.cpp's default
    if kind == "linear" and factor in (0.0, 1.0):
        kind = "none"
    if kind not in _KINDS:
        raise metadata.unsupported("rope.scaling.type", kind, " or ".join(map(repr, _KINDS)))
    if divisors is not None:
        if kind != "none":
            raise metadata.unsupported("rope.scaling.type", kind, f"'none' with {ROPE_DIVISORS}")
        return _of_divisors(metadata, settings, divisors, own)
    if kind == "none":
        return None
    if kind == "linear":
        return LinearScaling(factor).to_dict()
    scaling = YarnScaling(
        factor=factor,
        original_context=metadata.get("rope.scaling.original_context_length", settings["context"]),
        beta_fast=metadata.get("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=metadata.get("rope.scaling.yarn_beta_slow", 1.0),
    )
    metadata.only("rope.scaling.yarn_ext_factor", 1.0)
    metadata.only("rope.scaling.yarn_attn_factor", 1.0)
    metadata.only("rope.scaling.yarn_log_multiplier", 0.0)
    grown = metadata.get("rope.scaling.attn_factor", 1.0)
    return scaling.to_dict() | ({} if grown == 1.0 else {"attention_factor": float(f"{grown * scaling.amplitude:.7g}")})


def rope_divisors(config: GPTConfig, scaling: Llama3Scaling) -> list[float]:
    """Divisors ``[E / 2]`` of the RoPE frequencies under Llama-3 scaling."""
    return _divisors(config.rotated_width, config.rope_theta, scaling)


def _divisors(width: int, theta: float, scaling: Llama3Scaling) -> list[float]:
    divisors = []
    for pair in range(width // 2):
        turns = scaling.original_context / (2 * math.pi * theta ** (2 * pair / width))
        smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        smooth = min(1.0, max(0.0, smooth))
        divisors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return divisors


def _of_divisors(
    metadata: Metadata, settings: Mapping[str, Any], divisors: Sequence[float], own: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Llama-3 scaling with these divisors: ours if we wrote it, else with the factors of Llama 3."""
    if all(divisor == 1 for divisor in divisors):
        return None
    theta, width = settings["rope_theta"], 2 * len(divisors)
    choices = [scaling_from_dict(own)] if own else _fits(divisors, theta)
    for scaling in choices:
        if not isinstance(scaling, Llama3Scaling):
            continue
        right = _divisors(width, theta, scaling)
        if all(abs(found - value) <= _CLOSE * value for found, value in zip(divisors, right, strict=True)):
            return scaling.to_dict()
    raise ValueError(f"{metadata.path}: {ROPE_DIVISORS} is not a Llama-3 scaling of RoPE with base {theta}")


def _fits(divisors: Sequence[float], theta: float) -> list[Llama3Scaling]:
    """Scalings that may have these divisors; multiples of their last three settings are equivalent.

    1 / divisor is linear in the frequency between the two borders, so two interpolated frequencies decide both.
    """
    factor, width = float(max(divisors)), 2 * len(divisors)
    found = [Llama3Scaling(factor=factor, original_context=context) for context in (8192, 4096, 131072)]
    points = [
        (theta ** (-2 * pair / width) / (2 * math.pi), (1 / divisor - 1 / factor) / (1 - 1 / factor))
        for pair, divisor in enumerate(divisors)
        if 1 < divisor < factor
    ]
    if len(points) >= 2:
        (x1, y1), (x2, y2) = points[0], points[-1]
        slope = (y1 - y2) / (x1 - x2)  # original_context / (high - low)
        start = slope * x1 - y1  # low / (high - low)
        if slope > 0 and start > 0:
            # With low 1.
            high = 1 + 1 / start
            context = round(slope * (high - 1))
            found.append(Llama3Scaling(factor, 1.0, round(high, 4), context))
    return found
