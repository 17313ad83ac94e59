"""How far an export may be from its source before it counts as failed."""

from dataclasses import dataclass

from align.export.settings import ExportSettings
from align.export.verify import Verification


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that pass; None: not judged."""

    difference: float | None = None
    """Largest difference of a log-probability (nats), or of a reward model's score"""
    perplexity: float | None = None
    """Rise of the perplexity, as a share: 0.01 is one percent"""
    reward: float | None = None
    """Fall of the judge's mean score, as a share of the source's"""


TOLERANCES = {
    "float32": Tolerance(0.01, 1e-3, 0.01),
    "float16": Tolerance(0.1, 0.005, 0.02),
    "bfloat16": Tolerance(1.0, 0.01, 0.02),
    "int8": Tolerance(1.0, 0.01, 0.02),
    "q8_0": Tolerance(1.0, 0.01, 0.02),
    "q5_1": Tolerance(None, 0.03, 0.05),
    "q5_0": Tolerance(None, 0.03, 0.05),
    "q4_1": Tolerance(None, 0.05, 0.1),
    "q4_0": Tolerance(None, 0.05, 0.1),
    "gptq": Tolerance(None, 0.05, 0.1),
    "awq": Tolerance(None, 0.05, 0.1),
}
"""By the precision of the matrices. Below 8 bits the tail of the distribution moves by nats and means nothing.
A float32 GPT-2 in llama.cpp is off by some thousandths: its GELU is a table of float16 values."""


def precision(settings: ExportSettings, dtype: str) -> str:
    """Which row of ``TOLERANCES`` an export is held to.

    Args:
        settings: of the export.
        dtype: what ``auto`` stands for, as in ``float32``.
    """
    if settings.quantize != "none":
        # What is not quantized may be coarser than int8 is.
        return settings.quantize
    found = dtype if settings.dtype == "auto" else settings.dtype
    return found if found in TOLERANCES else "float32"


def check(found: Verification, allowed: Tolerance) -> None:
    """Refuse an export that differs too much.

    Raises:
        ValueError: the line names what differs, by how much, and what is allowed.
    """
    drop = None
    if found.reward_source is not None and found.reward_export is not None:
        drop = (found.reward_source - found.reward_export) / (abs(found.reward_source) or 1.0)
    measured = {
        "max_difference": (found.max_difference, allowed.difference, "--tolerance_difference"),
        "perplexity_change": (found.perplexity_change, allowed.perplexity, "--tolerance_perplexity"),
        "fall of the reward": (drop, allowed.reward, "--tolerance_reward"),
    }
    for name, (value, limit, setting) in measured.items():
        # A NaN is no pass.
        if value is not None and limit is not None and not value <= limit:
            raise ValueError(
                f"verify: {name} is {value:.4g}, above the tolerance {limit:g} ({found.read_by}, {found.prompts} "
                f"prompts): nothing was written; {setting} sets another"
            )
