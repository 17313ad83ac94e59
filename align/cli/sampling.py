"""Sampling flags of the verbs that show what a model writes: unset, they are the model's own defaults."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.generation.sampling_config import SamplingConfig

_OWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Settings that generation_config.json may name"""


class ResolvedSampling(NamedTuple):
    """How responses of one model are sampled.

    Attributes:
        config: every setting.
        note: one line on what the model's generation_config.json decided; None where it decided nothing.
    """

    config: SamplingConfig
    note: str | None


@dataclass(frozen=True)
class SamplingFlags:
    """How responses are sampled; null: as the model's generation_config.json says.

    Raises:
        ValueError: a setting is invalid.
    """

    temperature: float | None = None
    """Divides the logits; 0: greedy; null: the model's generation_config.json, else 1"""
    top_k: int | None = None
    """Sample from this many most probable tokens; 0: all; null: the model's generation_config.json, else all"""
    top_p: float | None = None
    """Sample from the fewest most probable tokens whose probabilities reach this; 1: all; null: the model's
    generation_config.json, else all"""
    min_p: float | None = None
    """Sample from tokens with at least this share of the highest probability; 0: all; null: the model's
    generation_config.json, else all"""
    repetition_penalty: float | None = None
    """Positive logits of tokens already in the row are divided by this, negative ones multiplied; 1: none; null: the
    model's generation_config.json, else none"""
    max_new_tokens: int = 128
    """Maximum response length, tokens"""
    dtype: Literal["bfloat16"] | None = None
    """bfloat16: round weights and compute in bfloat16, so that responses come from a slightly different distribution;
    faster on CPUs with bfloat16 instructions; null: the precision of the weights"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        SamplingConfig(**self._given())

    def _given(self) -> dict[str, Any]:
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def resolve(self, directory: Path) -> ResolvedSampling:
        """The settings for one model.

        Args:
            directory: of the model. Its generation_config.json is read unless that says ``do_sample: false``, where
                temperature and filters belong to a sampler that the model doesn't use.

        Raises:
            ValueError: generation_config.json is damaged, or names an invalid value.
        """
        from align.io.generation_config import FILE, sampling_defaults

        stored, given = sampling_defaults(directory), self._given()
        named = {name: stored[name] for name in _OWN if stored.get(name) is not None and name not in given}
        if stored.get("do_sample") is False:
            named = {}
        for name, value in named.items():
            if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else int | float):
                raise ValueError(f"{directory / FILE}: {name} is {value!r}, which is not a number; set --{name}")
        try:
            config = SamplingConfig(**(named | given))
        except ValueError as error:
            raise ValueError(f"{directory / FILE}: {error}; correct the file, or set the flag") from None
        values = ", ".join(f"{name} {value:g}" for name, value in named.items())
        return ResolvedSampling(config, f"sampling with {values} ({directory / FILE})" if named else None)
