"""What an export is to be: its format, the type of its weights, the size of its files."""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

Text = str | list[dict[str, str]]
Format = Literal["hf", "gguf"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
HfQuantization = Literal["none", "int8", "gptq", "awq"]
GgufQuantization = Literal["none", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
Quantization = Literal[HfQuantization, GgufQuantization]

FITTING: dict[str, tuple[str, ...]] = {"hf": get_args(HfQuantization), "gguf": get_args(GgufQuantization)}
"""Quantizations that each format can hold"""
CALIBRATED = ("gptq", "awq")
"""Quantizations that look at text"""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"([\d.]+)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class ExportSettings:
    """How a network is written.

    Raises:
        ValueError: two settings do not go together; the line says which would.
    """

    format: Format = "hf"
    """hf: safetensors and JSON, as transformers and vLLM read them; gguf: one file, as llama.cpp does"""
    dtype: Dtype = "auto"
    """Type of the weights that are not quantized; auto: as in the source"""
    quantize: Quantization = "none"
    """int8, gptq, awq: of hf; the others: of gguf"""
    max_shard_bytes: int = 5_000_000_000
    """Weights above this go to several files (hf)"""
    calibration: tuple[Text, ...] = ()
    """Texts that gptq and awq look at: texts, or chats with the answer as the last message"""
    quantizer_python: str | None = None
    """python of an environment with llm-compressor, for gptq and awq"""
    licence: str | None = None
    """SPDX name; None: the source's, if its card or its parents' names one"""
    intended_use: str | None = None
    """For the card; None: a sentence that follows from the stage"""
    limits: str | None = None
    """For the card; None: what is known to hold for any such model"""

    def __post_init__(self) -> None:
        """Refuse what no file can hold."""
        for name, kind in (("format", Format), ("dtype", Dtype), ("quantize", Quantization)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(kind))}")
        if self.quantize not in FITTING[self.format]:
            other = next(name for name, fitting in FITTING.items() if self.quantize in fitting)
            raise ValueError(
                f"quantize is {self.quantize!r}, which format {self.format!r} cannot hold: use "
                f"{', '.join(FITTING[self.format])}, or format {other!r}"
            )
        if self.quantize not in CALIBRATED and (self.calibration or self.quantizer_python):
            raise ValueError(f"calibration and quantizer_python are for {' and '.join(CALIBRATED)} alone")
        if self.max_shard_bytes < 1:
            raise ValueError(f"max_shard_bytes is {self.max_shard_bytes}; it must be at least 1")

    def summary(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {"format": self.format, "dtype": self.dtype, "quantize": self.quantize}


def parse_size(text: str) -> int:
    """Bytes in a size like ``5GB``, ``500MB``, ``2GiB`` or ``100000``.

    Raises:
        ValueError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    try:
        assert match is not None
        size = int(float(match[1]) * _UNITS[match[2].upper()])
    except (AssertionError, KeyError, ValueError):
        raise ValueError(f"{text!r} is no size; write a number and a unit, as in 500MB, 5GB or 2GiB") from None
    if size < 1:
        raise ValueError(f"{text!r} is no size: it must be at least 1 byte")
    return size
