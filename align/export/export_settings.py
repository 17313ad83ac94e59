"""Settings of an export: format, dtype, quantization, file sizes."""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

Text = str | list[dict[str, str]]
Format = Literal["hf", "gguf"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
HfQuantization = Literal["none", "int8", "gptq", "awq"]
GgufQuantization = Literal["none", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
Quantization = Literal[HfQuantization, GgufQuantization]

SUPPORTED: dict[str, tuple[str, ...]] = {"hf": get_args(HfQuantization), "gguf": get_args(GgufQuantization)}
"""Quantizations that each format supports"""
CALIBRATED = ("gptq", "awq")
"""Quantizations that need calibration texts"""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"([\d.]+)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class ExportSettings:
    """How a network is exported.

    Raises:
        ValueError: a setting is invalid or conflicts with another.
    """

    format: Format = "hf"
    """hf: safetensors and JSON, for transformers and vLLM; gguf: one file, for llama.cpp"""
    dtype: Dtype = "auto"
    """Of the weights that are not quantized; auto: as in the source"""
    quantize: Quantization = "none"
    """int8, gptq and awq for hf; the others for gguf"""
    max_shard_bytes: int = 5_000_000_000
    """Larger weights go to several files (hf)"""
    calibration: tuple[Text, ...] = ()
    """For gptq and awq: texts, or chats that end with a response"""
    quantizer_python: str | None = None
    """For gptq and awq: the python of an environment with llm-compressor"""
    licence: str | None = None
    """SPDX identifier; None: the one in the source's card, or its nearest parent's"""
    intended_use: str | None = None
    """For the card; None: a sentence for the stage"""
    limits: str | None = None
    """For the card; None: what applies to any such model"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        for name, kind in (("format", Format), ("dtype", Dtype), ("quantize", Quantization)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(kind))}")
        if self.quantize not in SUPPORTED[self.format]:
            other = next(name for name, supported in SUPPORTED.items() if self.quantize in supported)
            raise ValueError(
                f"quantize is {self.quantize!r}, which format {self.format!r} does not support: use "
                f"{', '.join(SUPPORTED[self.format])}, or format {other!r}"
            )
        if self.quantize not in CALIBRATED and (self.calibration or self.quantizer_python):
            raise ValueError(
                f"calibration or quantizer_python is set, but quantize is {self.quantize!r}; they are only for "
                f"{' and '.join(CALIBRATED)}"
            )
        if self.max_shard_bytes < 1:
            raise ValueError(f"max_shard_bytes is {self.max_shard_bytes}; it must be at least 1")

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        return {"format": self.format, "dtype": self.dtype, "quantize": self.quantize}


def parse_size(text: str) -> int:
    """Bytes in a size like ``5GB``, ``500MB``, ``2GiB`` or ``100000``.

    Raises:
        ValueError: it is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    try:
        assert match is not None
        size = int(float(match[1]) * _UNITS[match[2].upper()])
    except (AssertionError, KeyError, ValueError):
        raise ValueError(f"{text!r} is not a size; write a number and a unit, such as 500MB, 5GB or 2GiB") from None
    if size < 1:
        raise ValueError(f"{text!r} is not a size: it must be at least 1 byte")
    return size
