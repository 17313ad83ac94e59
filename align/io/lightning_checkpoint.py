"""Networks from the checkpoints that Lightning saves during training, whole or sharded, read in one process.

A sharded checkpoint is a directory in torch.distributed.checkpoint's format: one file per rank, ``.metadata`` with the
location of every shard, and Lightning's ``meta.pt`` with everything else.
"""

import io
import pickle
import zipfile
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from align.adapters.lora import LoraConfig, add_adapter, convert_base, merged_copy
from align.io.directory import load_network, load_scalar
from align.io.location import locate, read_config
from align.io.manifest import weights_fingerprint
from align.model.four_bit import round_matrices
from align.model.gpt import GPT, ScalarGPT
from align.model.meta import built_without_memory

_PREFIX = "network."
"""Prefix of the network that a stage trains and writes"""


def load_checkpoint(file: str | Path, directory: str | Path) -> GPT:
    """Load the language model of a stage's checkpoint, on the CPU, in the checkpoint's dtype.

    Args:
        file: a ``.ckpt`` of a stage of align.
        directory: a model directory of the same run, which has the network's configuration.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: the checkpoint is truncated, is not one of a language model, does not match the configuration, or
            is an adapter over a base that has changed.
    """
    path = Path(file)
    stored = read_stored(path)
    if (adapted := adapted_network(stored, path)) is not None:
        if not isinstance(adapted, GPT):
            raise ValueError(f"{path}: a reward model's adapter, which scores text; a language model is needed here")
        return adapted
    state = trained_state(stored, path)
    with built_without_memory():
        network = GPT(read_config(directory))
    fill_from(network, state, path)
    return network


def is_checkpoint(path: Path) -> bool:
    """Whether ``read_stored`` can read this: any file, or the directory of a sharded checkpoint."""
    return path.is_file() or (path / METADATA).is_file()


def read_stored(path: Path) -> dict[str, Any]:
    """Read a checkpoint: a file, whose tensors are memory-mapped, or the directory of a sharded one.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is truncated, or not a Lightning checkpoint.
    """
    if path.is_dir():
        return read_sharded(path)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        size = path.stat().st_size
        # After its first sentence torch adds a paragraph of guesses.
        reason = str(error).strip().partition(". ")[0].partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: truncated, or not a Lightning checkpoint ({size} bytes): {reason}") from None
    for field in ("state_dict", "global_step"):
        if not isinstance(stored, dict) or field not in stored:
            raise ValueError(f"{path}: {field} is missing: not a Lightning checkpoint")
    return stored


def adapted_network(stored: dict[str, Any], path: Path) -> GPT | ScalarGPT | None:
    """The merged network of an adapter's checkpoint; None if the checkpoint has a whole network.

    Args:
        stored: from ``read_stored``.
        path: of the checkpoint, for errors.

    Raises:
        FileNotFoundError: the base is no longer where it was.
        ValueError: the base has changed, was made in Python, or does not match the adapter.
    """
    record = stored.get("adapter")
    if record is None:
        return None
    base = record["base"]
    if base is None:
        raise ValueError(f"{path}: has an adapter over a network that was made in Python, so its base can't be loaded")
    try:
        directory = locate(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: has an adapter whose base is missing: {error}") from None
    if (weights := weights_fingerprint(directory)) != record["weights"]:
        raise ValueError(
            f"{path}: has an adapter over base weights {record['weights'][:12]}, but {base} now has {weights[:12]}; "
            "restore the base that it was trained on"
        )
    state = trained_state(stored, path)
    config = LoraConfig(**record["lora"])
    network: GPT | ScalarGPT = load_scalar(directory) if "score.weight" in state else load_network(directory)
    convert_base(network, config.dtype)
    if record.get("four_bit"):
        round_matrices(network, record["four_bit"])
    add_adapter(network, config)
    trained = {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}
    _check_match(state, trained, path)
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(state[name])
    return merged_copy(network)


def trained_state(stored: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the trained network, by its parameter names.

    Args:
        stored: from ``read_stored``.
        path: of the checkpoint, for errors.

    Raises:
        ValueError: no stage of align wrote it.
    """
    tensors = stored["state_dict"]
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    if not state:
        names = ", ".join(sorted({name.partition(".")[0] for name in tensors})) or "nothing"
        raise ValueError(f"{path}: state_dict has {names}, but no {_PREFIX}*: not a checkpoint of a stage of align")
    return state


def fill_from(network: GPT | ScalarGPT, state: dict[str, torch.Tensor], path: Path) -> None:
    """Fill a network with copies of a checkpoint's tensors.

    Args:
        network: with the run's configuration; may be on the meta device.
        state: from ``trained_state``.
        path: of the checkpoint, for errors.

    Raises:
        ValueError: a tensor is missing, unexpected or of the wrong shape.
    """
    _check_match(state, network.state_dict(), path)
    network.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)


def _check_match(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in expected.items():
        if name not in state:
            raise ValueError(f"{path}: {_PREFIX}{name} is missing from state_dict; the run's network needs it")
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {_PREFIX}{name} is {list(state[name].shape)}; the run's network has {list(tensor.shape)}"
            )
    if unexpected := sorted(state.keys() - expected.keys()):
        raise ValueError(f"{path}: {_PREFIX}{unexpected[0]} is not part of the run's network")


METADATA = "meta.pt"
"""Lightning's file in the directory; written last, so a directory without it is incomplete"""

_KNOWN = {
    "torch.distributed.checkpoint.metadata": None,
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}
"""What a .metadata file may refer to, by module; None: anything in that module"""


def read_sharded(folder: Path, *, only_weights: bool = True) -> dict[str, Any]:
    """Read a sharded checkpoint on the CPU; only tensors and plain values are unpickled.

    Args:
        folder: a directory that Lightning's ModelParallelStrategy wrote.
        only_weights: leave out the optimizer's state.

    Returns:
        The content of a ``.ckpt`` file: ``state_dict``, ``global_step`` and the rest; with ``only_weights=False`` also
        ``optimizer_states``, keyed by parameter names instead of indices.

    Raises:
        ValueError: it is incomplete, or not of that format.
    """
    if not (folder / METADATA).is_file():
        raise ValueError(f"{folder}: incomplete sharded checkpoint: {METADATA}, which is written last, is missing")
    stored: dict[str, Any] = torch.load(folder / METADATA, map_location="cpu", weights_only=True)
    parts: dict[str, Any] = {}
    try:
        planner = _Planner(keys={"state_dict"} if only_weights else None)
        _load_state_dict(parts, storage_reader=_Reader(folder), planner=planner, no_dist=True)
    except (CheckpointException, OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        # torch wraps a reader's exception, once per rank.
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        reason = str(cause).partition("\n")[0] or type(cause).__name__
        raise ValueError(f"{folder}: damaged sharded checkpoint: {reason}") from None
    optimizers = sorted(name for name in parts if name.startswith("optimizer_"))
    states = {"optimizer_states": [parts[name] for name in optimizers]} if optimizers else {}
    return {**stored, "state_dict": parts["state_dict"], **states}


def shards_damage(folder: Path) -> str | None:
    """Read all shards from end to end, one in memory at a time, and report what is wrong.

    Each shard is a zip archive within a rank's file, with a CRC-32 that torch writes but does not check.

    Args:
        folder: of a checkpoint that has ``.metadata``.

    Returns:
        str: what is wrong; None if all are whole.
    """
    try:
        parts = sorted(_Reader(folder).read_metadata().storage_data.values(), key=lambda p: (p.relative_path, p.offset))
    except Exception:  # a corrupt pickle can raise anything
        return ".metadata is truncated or overwritten"
    for name, own in groupby(parts, key=lambda part: str(part.relative_path)):
        if not (folder / name).is_file():
            return f"{name} is missing"
        with (folder / name).open("rb") as file:
            for part in own:
                file.seek(part.offset)
                try:
                    with zipfile.ZipFile(io.BytesIO(file.read(part.length))) as archive:
                        wrong = archive.testzip()
                except Exception:  # a corrupt header can raise anything
                    return f"{name} is truncated or overwritten at byte {part.offset:,}"
                if wrong is not None:
                    return f"the checksum of {name} at byte {part.offset:,} is wrong"
    return None


class _Planner(_EmptyStateDictLoadPlanner):
    """Reads everything in the directory."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """Read a plain value, such as a learning rate."""
        name = read_item.dest_index.fqn
        set_element(self.original_state_dict, self.mappings[name], torch.load(value, weights_only=True))


class _Reader(FileSystemReader):
    """torch's reader, with a restricted unpickler for .metadata."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The location of every shard."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _Unpickler(file).load()
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        """Allow only what torch writes."""
        if module in _KNOWN and (_KNOWN[module] is None or name in (_KNOWN[module] or ())):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f".metadata names {module}.{name}, which torch never writes there")
