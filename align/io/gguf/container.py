"""GGUF files as containers: metadata by key, and tensors that are mapped rather than read.

Imports nothing of align, so the tokenizer may read its metadata too.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple


class Container(NamedTuple):
    """An open file.

    Attributes:
        values: metadata, as Python values.
        tensors: ``gguf.ReaderTensor`` by name.
    """

    values: dict[str, Any]
    tensors: dict[str, Any]


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that a path names: itself, or the only one of a directory without config.json; else None."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    files = sorted(path.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def open_container(path: Path) -> Container:
    """Read a file's metadata and map its tensors.

    Raises:
        ModuleNotFoundError: gguf is not installed.
        ValueError: it is not a GGUF file, is truncated, or is one of several parts.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f'{path}: GGUF files need gguf, which is not installed: pip install "lightning-align[export]"'
        ) from None
    try:
        reader = gguf.GGUFReader(path)
        values = {name: _plain(field.contents()) for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, OverflowError, KeyError, MemoryError) as error:
        raise ValueError(f"{path}: not a GGUF file, or a truncated one: {error}") from None
    if (parts := values.get("split.count", 0)) > 1:
        raise ValueError(f"{path}: split.count is {parts}; join the parts with llama-gguf-split --merge")
    return Container(values, tensors)


def _plain(value: Any) -> Any:
    """A value, float32 as the shortest decimal that is rounded to it."""
    if isinstance(value, list):
        return [_plain(item) for item in value] if value and isinstance(value[0], float) else value
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    import numpy as np

    single = np.float32(value)
    return float(str(single)) if float(single) == value else value
