"""Read a GGUF file: its metadata, and its tensors one at a time, dequantized."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from align.io.gguf.architectures import GgufTensor, architecture_in
from align.io.gguf.container import open_container
from align.io.gguf.metadata import Metadata
from align.io.gguf.rope import ROPE_DIVISORS
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.meta import built_without_memory

_EXACT = {"F16": torch.float16, "BF16": torch.bfloat16}

_BUFFERS = (ROPE_DIVISORS, ".attn_rot_embd.weight")
"""Ends of the names of tensors that are computed from the metadata"""


class GgufFile(NamedTuple):
    """An open file.

    Attributes:
        metadata: its metadata.
        config: of its network.
        shapes: of the network's tensors, by our names.
        tensors: our tensors, dequantized when they are read.
        dtype: the narrowest that holds its matrices: float32 if any is quantized.
    """

    metadata: Metadata
    config: GPTConfig
    shapes: dict[str, tuple[int, ...]]
    tensors: "DequantizedState"
    dtype: torch.dtype


class DequantizedState(Mapping[str, torch.Tensor]):
    """The tensors of a network, float32, each dequantized when it is read.

    The last tensor of the file that was read stays in memory.
    """

    def __init__(self, stored: Mapping[str, Any], layout: list[GgufTensor], shapes: Mapping[str, tuple[int, ...]]):
        """Index the tensors.

        Args:
            stored: ``gguf.ReaderTensor`` by name.
            layout: the file's.
            shapes: of our tensors, by name.
        """
        self._stored, self._shapes = stored, shapes
        self._of_part: dict[str, GgufTensor] = {}
        for tensor in layout:
            for part in tensor.parts:
                self._of_part.setdefault(part, tensor)
        self._last: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor, in memory of its own."""
        if name not in self._last:
            tensor = self._of_part[name]
            rows = [self._shapes[part][0] for part in tensor.parts]
            self._last = tensor.split(_dequantized(self._stored[tensor.name]), rows)
        return self._last.pop(name)

    def __iter__(self) -> Iterator[str]:
        """Our names."""
        return iter(self._shapes)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._shapes)


def open_gguf(path: Path) -> GgufFile:
    """Read a file's metadata, and check its tensors without reading them.

    Raises:
        ModuleNotFoundError: gguf is not installed.
        ValueError: the file is damaged, its architecture is not supported, or a tensor is missing, unexpected, of the
            wrong shape or of an unknown type; the line names the file and what.
    """
    values, stored = open_container(path)
    embedding = stored.get("token_embd.weight")
    metadata = Metadata(path, values, embedding=() if embedding is None else _shape(embedding))
    architecture = architecture_in(metadata)
    if embedding is None:
        raise ValueError(f"{path}: the tensor token_embd.weight is missing")
    if _same(stored.get("output.weight"), embedding):
        del stored["output.weight"]
    divisors = stored.get(ROPE_DIVISORS)
    config = architecture.read(metadata, None if divisors is None else _dequantized(divisors).tolist(), stored)
    with built_without_memory():
        network = GPT(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    layout = [tensor for tensor in architecture.layout(shapes, config) if tensor.name in stored or not _copy(tensor)]
    _check(path, stored, layout, shapes)
    return GgufFile(metadata, config, shapes, DequantizedState(stored, layout, shapes), _dtype(stored, layout))


def _check(
    path: Path, stored: Mapping[str, Any], layout: list[GgufTensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    expected = {tensor.name: tensor for tensor in layout}
    if missing := [name for name in expected if name not in stored]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(f"{path}: the tensor {missing[0]}{more} is missing, which its metadata require")
    for kind, tensor in {tensor.tensor_type: tensor for tensor in stored.values()}.items():
        if not _readable(tensor):
            raise ValueError(
                f"{path}: the tensor {tensor.name} has type {kind.name}, which the gguf package can't read"
            )
    for name, tensor in stored.items():
        if name.endswith(_BUFFERS):
            continue
        if name not in expected:
            raise ValueError(f"{path}: the tensor {name} is not part of the network that its metadata describe")
        parts = [shapes[part] for part in expected[name].parts]
        right = (sum(part[0] for part in parts), *parts[0][1:])
        if _shape(tensor) != right:
            raise ValueError(f"{path}: the tensor {name} is {list(_shape(tensor))}; its metadata say {list(right)}")


def _copy(tensor: GgufTensor) -> bool:
    """Whether a tensor repeats the embedding, for an architecture that needs an output matrix."""
    return tensor.name == "output.weight" and tensor.parts == ("model.embed_tokens.weight",)


def _same(first: Any, second: Any) -> bool:
    """Whether two tensors of a file are equal."""
    if first is None or first.tensor_type != second.tensor_type or _shape(first) != _shape(second):
        return False
    return bool((first.data == second.data).all())


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _dtype(stored: Mapping[str, Any], layout: list[GgufTensor]) -> torch.dtype:
    """The dtype of all matrices, if it also holds all vectors exactly; else float32."""
    kinds = {stored[tensor.name].tensor_type.name for tensor in layout if len(_shape(stored[tensor.name])) > 1}
    dtype = _EXACT.get(kinds.pop()) if len(kinds) == 1 else None
    if dtype is None:
        return torch.float32
    for tensor in layout:
        if len(_shape(stored[tensor.name])) == 1:
            values = _dequantized(stored[tensor.name]) - tensor.offset
            if not torch.equal(values.to(dtype).float(), values):
                return torch.float32
    return dtype


def _dequantized(tensor: Any) -> torch.Tensor:
    """A tensor's values ``[rows, columns]`` or ``[columns]``, float32, in memory of its own."""
    import gguf

    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(values.reshape(_shape(tensor)).astype("float32", copy=True))


def _readable(tensor: Any) -> bool:
    """Whether the gguf package dequantizes the tensor's type, tried on its first row."""
    import gguf

    try:
        gguf.quants.dequantize(tensor.data[:1] if len(tensor.shape) > 1 else tensor.data, tensor.tensor_type)
    except NotImplementedError:
        return False
    return True
