"""Weight files: the safetensors format, read and written one tensor at a time.

A file is eight bytes (the header's length, little-endian), a JSON header (name -> dtype, shape, offsets) and the
tensors' bytes. The safetensors library maps the file (a network would die with the file under it) and, to write,
wants all tensors converted at once; here nothing but the tensor in hand is in memory twice, errors name file and
tensor, and a full disk is an OSError. Torch is imported only where tensors are made.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"

INDEX = "model.safetensors.index.json"

_CHUNK = 1 << 22

_MAX_HEADER = 100_000_000

_FLOATS = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}

_OTHERS = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}

_SIZES = _OTHERS | {code: size for code, (_, size) in _FLOATS.items()}

_CODES = {name: code for code, (name, _) in _FLOATS.items()}


class StoredTensor(NamedTuple):
    """Where a tensor lies.

    Attributes:
        path: the file.
        name: its name there.
        dtype: the format's code, as in ``F32`` or ``BF16``.
        shape: its shape.
        start: its first byte in the file.
        stop: the byte after its last.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class PlannedTensor(NamedTuple):
    """A tensor to write: its name, shape and floating-point type."""

    name: str
    shape: tuple[int, ...]
    dtype: "torch.dtype"

    @property
    def num_bytes(self) -> int:
        """Bytes it takes in a file."""
        return math.prod(self.shape) * self.dtype.itemsize


def stored_weights(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model directory by name, from one file or from the shards that an index names.

    Raises:
        FileNotFoundError: there is no weight file, or one that the index names is missing.
        ValueError: a file is damaged, the index does not fit the shards, or the weights are pickled.
    """
    single, index = directory / WEIGHTS, directory / INDEX
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        if pickled := sorted(directory.glob("pytorch_model*.bin")):
            raise ValueError(
                f"{pickled[0]}: pickled weights are not read, unpickling can run code; if you trust it, open the "
                "directory with transformers and save_pretrained it, which writes model.safetensors"
            )
        raise FileNotFoundError(f"{directory}: no weights: neither {WEIGHTS} nor {INDEX}")
    try:
        places = dict(json.loads(index.read_bytes())["weight_map"])
        shards = sorted({Path(str(file)).name for file in places.values()})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index}: not an index of weights: {type(error).__name__} ({error})") from None
    for shard in shards:
        if not (directory / shard).is_file():
            raise FileNotFoundError(f"{index}: names {shard}, which is not in {directory}")
    tensors = {name: tensor for shard in shards for name, tensor in read_header(directory / shard).items()}
    if lost := sorted(places.keys() - tensors.keys()):
        raise ValueError(f"{index}: {lost[0]} is not in {places[lost[0]]}, where the index says it is")
    return tensors


def read_header(path: Path) -> dict[str, StoredTensor]:
    """What a weight file holds, by name, in the order of its bytes; no weights are read.

    Raises:
        ValueError: the file is no safetensors file, or is cut short; the line names the first tensor that is cut.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _MAX_HEADER:
            raise ValueError(f"{path}: not a safetensors file{_guess(path)}")
        if 8 + length > size:
            raise ValueError(f"{path}: truncated: its header takes {8 + length} bytes, the file holds {size}")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = [_stored(path, name, entry, 8 + length) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a safetensors file: {type(error).__name__} in its header ({error})") from None
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    end = 8 + length
    for tensor in tensors:
        expected = math.prod(tensor.shape) * _SIZES.get(tensor.dtype, 0)
        if tensor.start != end or (tensor.dtype in _SIZES and tensor.stop - end != expected):
            raise ValueError(f"{path}: damaged header: offsets of {tensor.name} do not fit its shape and neighbours")
        end = tensor.stop
    if end != size:
        cut = next((f" (the first tensor cut is {t.name})" for t in tensors if t.stop > size), "")
        state = "truncated" if end > size else "damaged"
        raise ValueError(f"{path}: {state}: its header says {end} bytes, the file holds {size}{cut}")
    return {tensor.name: tensor for tensor in tensors}


def read_tensor(stored: StoredTensor) -> "torch.Tensor":
    """A tensor of its stored shape and type, in memory of its own.

    Raises:
        ValueError: its type is not a floating-point one that networks are kept in.
    """
    import torch

    if stored.dtype not in _FLOATS:
        raise ValueError(f"{stored.path}: {stored.name} is {stored.dtype}; supported: {', '.join(_FLOATS)}")
    tensor = torch.empty(stored.shape, dtype=getattr(torch, _FLOATS[stored.dtype][0]))
    view = tensor.view(-1).view(torch.uint8).numpy().data
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        done = 0
        # One call reads at most 2 GiB.
        while done < len(view) and (count := file.readinto(view[done:])):
            done += count
    if done < len(view):
        raise ValueError(f"{stored.path}: truncated while it was read, in {stored.name}")
    return tensor


def stored_bytes(stored: StoredTensor) -> Iterator[bytes]:
    """A tensor's bytes, in chunks of a few MiB."""
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        for start in range(stored.start, stored.stop, _CHUNK):
            yield file.read(min(_CHUNK, stored.stop - start))


def write_tensors(path: Path, plan: Sequence[PlannedTensor], fetch: "Callable[[str], torch.Tensor]") -> None:
    """Write a weight file.

    Args:
        path: the file; what was there is overwritten.
        plan: what it is to hold.
        fetch: gives the tensor of a name in its planned shape, on any device and of any type; called once each.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    import torch

    # Wide types first, as the library does, so that every tensor starts at a multiple of its element's size.
    plan = sorted(plan, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in plan:
        code = _CODES[str(tensor.dtype).removeprefix("torch.")]
        header[tensor.name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [end, end + tensor.num_bytes]}
        end += tensor.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in plan:
            values = fetch(tensor.name).detach().to(device="cpu", dtype=tensor.dtype).contiguous()
            if values.shape != tensor.shape:
                raise ValueError(f"{path}: {tensor.name} is {tuple(values.shape)}, planned as {tensor.shape}")
            file.write(values.view(-1).view(torch.uint8).numpy().data)


def _stored(path: Path, name: str, entry: dict[str, Any], base: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    shape = tuple(int(axis) for axis in entry["shape"])
    return StoredTensor(path, name, str(entry["dtype"]), shape, base + int(start), base + int(stop))


def _guess(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            return ", but a Git LFS pointer; fetch it with: git lfs pull"
    return ""
