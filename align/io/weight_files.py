"""Weight files in the safetensors format, one or several for a model directory.

Reading keeps one tensor in memory beside the caller's; writing keeps one file's, which ``max_shard_bytes`` bounds.
Torch is imported only where tensors are made.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"

INDEX = "model.safetensors.index.json"

_FLOATS = ("F64", "F32", "F16", "BF16")


class StoredTensor(NamedTuple):
    """A tensor in a weight file.

    Attributes:
        path: the file.
        name: its name in the file.
        dtype: the format's code, such as ``F32`` or ``BF16``.
        shape: its shape.
        file: the open file, from the safetensors library.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Any


def stored_weights(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model directory by name, from one file or from the shards that an index names.

    Raises:
        FileNotFoundError: there is no weight file, or a shard that the index names is missing.
        ValueError: a file is damaged, the index does not match the shards, or the weights are pickled.
    """
    single, index = directory / WEIGHTS, directory / INDEX
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        if pickled := sorted(directory.glob("pytorch_model*.bin")):
            raise ValueError(
                f"{pickled[0]}: pickled weights are not read because unpickling can run code; if you trust the file, "
                "load the directory in transformers and save_pretrained it, which writes model.safetensors"
            )
        raise FileNotFoundError(f"{directory}: no weights: neither {WEIGHTS} nor {INDEX}")
    try:
        file_of = dict(json.loads(index.read_bytes())["weight_map"])
        shards = sorted({Path(str(file)).name for file in file_of.values()})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index}: not a weight index: {type(error).__name__} ({error})") from None
    for shard in shards:
        if not (directory / shard).is_file():
            raise FileNotFoundError(f"{index}: names {shard}, which is not in {directory}")
    tensors = {name: tensor for shard in shards for name, tensor in read_header(directory / shard).items()}
    if missing := sorted(file_of.keys() - tensors.keys()):
        raise ValueError(f"{index}: {missing[0]} is not in {file_of[missing[0]]}, where the index says it is")
    return tensors


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a weight file by name, in the order of their bytes; their values are not read.

    Raises:
        ValueError: not a safetensors file, or a truncated one; the message names the first truncated tensor.
    """
    try:
        # pread: a mapped file that is truncated under us would kill the process with SIGBUS.
        file: Any = safe_open(path, framework="pt", backend="pread")
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: {_diagnosis(path) or f'not a safetensors file: {error}'}") from None
    return {
        name: StoredTensor(path, name, part.get_dtype(), tuple(part.get_shape()), file) for name, part in slices.items()
    }


def read_tensor(stored: StoredTensor) -> "torch.Tensor":
    """A floating-point tensor with its stored shape and dtype, in memory of its own.

    Raises:
        ValueError: another dtype, or the file was truncated meanwhile.
    """
    if stored.dtype not in _FLOATS:
        raise ValueError(f"{stored.path}: {stored.name} is {stored.dtype}; supported: {', '.join(_FLOATS)}")
    return _values(stored)


def tensor_bytes(stored: StoredTensor) -> memoryview:
    """A tensor's bytes, whatever its dtype.

    Raises:
        ValueError: the file was truncated meanwhile.
    """
    import torch

    view: memoryview = _values(stored).reshape(-1).view(torch.uint8).numpy().data
    return view


def _values(stored: StoredTensor) -> "torch.Tensor":
    try:
        tensor: torch.Tensor = stored.file.get_tensor(stored.name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{stored.path}: {stored.name} can't be read: {error}") from None
    return tensor


def write_tensors(path: Path, tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Write a weight file.

    Args:
        path: the file; replaced if it exists.
        tensors: by name, on any device. All of them are in memory at once.
        metadata: further text for the header.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(dense, path, {**(metadata or {}), "format": "pt"})
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    # The library makes files that only their owner can read.
    path.chmod(mode)


def _diagnosis(path: Path) -> str | None:
    """What the library does not say: which tensor is truncated, or that the file is a Git LFS pointer."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(24)
        if start.startswith(b"version https://git-lfs"):
            return "a Git LFS pointer instead of weights; fetch them with: git lfs pull"
        base = 8 + int.from_bytes(start[:8], "little")
        if base > size:
            return None
        file.seek(8)
        try:
            header = json.loads(file.read(base - 8))
            ends = sorted((base + entry["data_offsets"][1], name) for name, entry in header.items() if "dtype" in entry)
        except (ValueError, KeyError, TypeError, IndexError):
            return None
    truncated = next((name for end, name in ends if end > size), None)
    return truncated and f"truncated in {truncated}: its header says {ends[-1][0]} bytes, the file has {size}"
