"""The model directory, in the Hugging Face layout: the input and the output of every stage.

Directories written here open in transformers where it has the architecture, and a local directory or Hub id of those
opens here. ``align.io.families`` maps each family's tensor names and configuration to ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from align.adapters.merging import MergedState, has_lora
from align.io.atomic import replacing_directory
from align.io.families import config_from, family_in
from align.io.families.family import ConfigJson, Family, FileTensor
from align.io.location import locate, read_config, read_fields
from align.io.manifest import weights_fingerprint
from align.io.state_files import save_state, shape_in_file
from align.io.weight_files import StoredTensor, read_tensor, stored_weights
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.model.meta import built_without_memory

if TYPE_CHECKING:
    from align.model.gpt import ScalarGPT

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

__all__ = ["load_network", "locate", "read_config", "replacing_directory", "save_network", "weights_fingerprint"]


def load_network(source: str | Path, *, dtype: torch.dtype = torch.float32) -> GPT:
    """Load the language model of a model directory, on the CPU and in training mode.

    The network is built on the meta device and filled one tensor at a time.

    Args:
        source: a directory in the Hugging Face layout, sharded or not, or a Hub id; see ``locate``.
        dtype: of the loaded weights.

    Raises:
        FileNotFoundError: the directory or a weight file is missing.
        ValueError: the configuration is not supported, the directory is a reward model, a file is damaged, or a tensor
            is missing, unexpected or of the wrong shape; the message names file and tensor.
    """
    directory = locate(source)
    fields = read_fields(directory)
    config = config_from(fields)
    if is_scalar(fields):
        raise ValueError(
            f"{directory} is a reward model ({family_in(fields).classifier}), which scores text; "
            "a language model is needed here"
        )
    with built_without_memory():
        network = GPT(config)
    fill(network, directory, fields, dtype=dtype)
    return network


def is_scalar(fields: ConfigJson) -> bool:
    """Whether a config.json describes a network with a scalar head instead of a language model."""
    return family_in(fields).classifier in fields.get("architectures", [])


def fill(
    network: nn.Module,
    directory: Path,
    fields: ConfigJson,
    *,
    dtype: torch.dtype,
    ignored: Sequence[str] = (),
    fresh: Sequence[str] = (),
) -> None:
    """Fill a network on the meta device with the weights of a directory, one tensor at a time.

    Args:
        network: a GPT or a ScalarGPT of the configuration in ``fields``.
        directory: of the weight files.
        fields: its config.json.
        dtype: of the loaded weights.
        ignored: tensors to skip, by our names, if the file has them.
        fresh: tensors of the network that the file does not have; they stay on the meta device.

    Raises:
        FileNotFoundError: a weight file is missing.
        ValueError: a file is damaged, or a tensor is missing, unexpected or of the wrong shape.
    """
    config, family = config_from(fields), family_in(fields)
    stored = _by_canonical_name(stored_weights(directory), family)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name not in fresh}
    layout = family.layout(shapes, config)
    for tensor in family.layout(ignored, config):
        stored.pop(tensor.name, None)
    _drop_tied_copy(stored, config, layout)
    _check_complete(stored, layout, shapes, directory)
    ours = {
        name: part.to(dtype)
        for tensor in layout
        for name, part in split_parts(tensor, read_tensor(stored[tensor.name]))
    }
    network.load_state_dict(ours, assign=True, strict=not fresh)


def save_network(
    network: "GPT | ScalarGPT",
    directory: str | Path,
    *,
    bos_id: int | None,
    eos_ids: Sequence[int],
    pad_id: int | None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    rows: int | None = None,
    untied: bool = False,
) -> None:
    """Write config.json, generation_config.json and the weights, as the family that fits the network's configuration.

    Not atomic by itself: write into the directory that ``replacing_directory`` yields.

    Args:
        network: what to write; a tied output matrix is written once, as the embedding. A ScalarGPT is written as a
            sequence classifier with one label, which finds the last real token by ``pad_id``. Adapters are written
            merged; the network itself is not changed.
        directory: created if needed; must have no weights yet.
        bos_id: token id that starts a text, or None.
        eos_ids: token ids that end a response.
        pad_id: token id of padding, or None.
        dtype: of the written weights; None: as they are.
        max_shard_bytes: larger weights go to several files with an index; a tensor is never split. Up to so many bytes
            of converted weights are in memory at a time.
        rows: of embedding and output matrix to write, as the vocabulary; the others must be padding. None: all.
        untied: write a tied output matrix as a tensor of its own.

    Raises:
        FileExistsError: the directory has weights already.
        OSError: the disk is full.
    """
    state: Mapping[str, torch.Tensor] = MergedState(network) if has_lora(network) else network.state_dict()
    config = network.config
    untied = untied and config.tied_embeddings
    if untied or rows not in (None, config.vocab_size):
        state = _Vocabulary(state, rows or config.vocab_size, untied=untied)
        config = replace(config, vocab_size=state.rows, tied_embeddings=config.tied_embeddings and not untied)
    save_state(
        state,
        directory,
        config=config,
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        bos_id=bos_id,
        eos_ids=eos_ids,
        pad_id=pad_id,
        dtype=dtype or state[_EMBEDDING].dtype,
        max_shard_bytes=max_shard_bytes,
    )


class _Vocabulary(Mapping[str, torch.Tensor]):
    """Tensors by name, of which embedding and output matrix end after so many rows, and are apart."""

    def __init__(self, state: Mapping[str, torch.Tensor], rows: int, *, untied: bool) -> None:
        self._state, self.rows, self._untied = state, rows, untied

    def __getitem__(self, name: str) -> torch.Tensor:
        if name == _HEAD and self._untied:
            return self[_EMBEDDING].clone()  # safetensors refuses two names of one memory
        tensor = self._state[name]
        return tensor[: self.rows] if name in (_EMBEDDING, _HEAD) else tensor

    def __iter__(self) -> Iterator[str]:
        yield from self._state
        if self._untied:
            yield _HEAD

    def __len__(self) -> int:
        return len(self._state) + self._untied


def _by_canonical_name(stored: Mapping[str, StoredTensor], family: Family) -> dict[str, StoredTensor]:
    return {known: tensor for name, tensor in stored.items() if (known := family.canonical(name)) is not None}


def _drop_tied_copy(stored: dict[str, StoredTensor], config: GPTConfig, layout: Sequence[FileTensor]) -> None:
    """Drop a tied output matrix that the file also has, if it equals the embedding."""
    if not config.tied_embeddings or "lm_head.weight" not in stored:
        return
    embedding = stored.get(next(t.name for t in layout if t.parts == ("model.embed_tokens.weight",)))
    head = stored.pop("lm_head.weight")
    if embedding is None:
        return
    if head.shape != embedding.shape or not torch.equal(read_tensor(head), read_tensor(embedding)):
        raise ValueError(
            f"{head.path}: lm_head.weight differs from {embedding.name}, but config.json ties them; "
            "set tie_word_embeddings to false to use both"
        )


def _check_complete(
    stored: Mapping[str, StoredTensor],
    layout: Sequence[FileTensor],
    shapes: Mapping[str, tuple[int, ...]],
    directory: Path,
) -> None:
    expected = {tensor.name: tensor for tensor in layout}
    if missing := [name for name in expected if name not in stored]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(f"{directory}: the weights lack {missing[0]}{more}, which config.json requires")
    for name, tensor in stored.items():
        if name not in expected:
            raise ValueError(f"{tensor.path}: {tensor.name} is not part of the network that config.json describes")
        if tensor.shape != (right := shape_in_file(expected[name], shapes)):
            raise ValueError(f"{tensor.path}: {tensor.name} is {list(tensor.shape)}; config.json says {list(right)}")


def split_parts(tensor: FileTensor, values: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors from one tensor of a file, each in memory of its own."""
    if tensor.transposed:
        values = values.T
    if len(tensor.parts) == 1:
        yield tensor.parts[0], values.contiguous()
        return
    grouped = values.unflatten(0, (tensor.groups, len(tensor.parts), -1))
    for name, part in zip(tensor.parts, grouped.unbind(1), strict=True):
        yield name, part.flatten(0, 1).clone(memory_format=torch.contiguous_format)


def load_scalar(source: str | Path, *, dtype: torch.dtype = torch.float32, head_seed: int = 0) -> ScalarGPT:
    """Load a reward model, or a language model's trunk with a fresh scalar head; on the CPU, in training mode.

    Args:
        source: a directory in the Hugging Face layout, or a Hub id; see ``locate``.
        dtype: of the loaded weights.
        head_seed: seeds a fresh head; unused where the directory has a head.

    Raises:
        FileNotFoundError: the directory or a weight file is missing.
        ValueError: the configuration is not supported (such as more than one label), a file is damaged, or a tensor is
            missing, unexpected or of the wrong shape; the message names file and tensor.
    """
    directory = locate(source)
    fields = read_fields(directory)
    with built_without_memory():
        network = ScalarGPT(config_from(fields))
    if is_scalar(fields):
        fill(network, directory, fields, dtype=dtype)
        return network
    fill(network, directory, fields, dtype=dtype, ignored=("lm_head.weight",), fresh=("score.weight",))
    # Drawn in float32, so that a seed gives the same head in every dtype.
    network.score = nn.Linear(network.config.width, 1, bias=False)
    network.initialise_head(head_seed)
    network.score.to(dtype)
    return network
