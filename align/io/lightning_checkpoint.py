"""Weights out of the checkpoints that Lightning writes of our stages.

Checkpoints that many processes wrote, each its part, read whole in one process.

The format is torch.distributed.checkpoint's: a folder with a file a rank, ``.metadata`` that says where each tensor's
parts are, and Lightning's ``meta.pt`` with everything else.
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
"""What a stage calls the network that it trains and writes"""


def load_checkpoint(file: str | Path, directory: str | Path) -> GPT:
    """The language model that a stage had trained when it wrote a checkpoint, on the CPU, in the checkpoint's type.

    Args:
        file: a ``.ckpt`` of one of our stages.
        directory: a model directory of the same run, which knows the network's shape.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: the checkpoint is cut short, holds no network of ours, or one of another shape, or an adapter over
            a base that is no longer what it was.
    """
    path = Path(file)
    stored = read_stored(path)
    if (adapted := adapted_network(stored, path)) is not None:
        if not isinstance(adapted, GPT):
            raise ValueError(f"{path}: a reward model's adapter, which gives a score and no text")
        return adapted
    state = trained_state(stored, path)
    with built_without_memory():
        network = GPT(read_config(directory))
    fill_from(network, state, path)
    return network


def is_checkpoint(path: Path) -> bool:
    """Whether this is something that ``read_stored`` reads: any file, or the folder of a sharded checkpoint."""
    return path.is_file() or (path / METADATA).is_file()


def read_stored(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, its tensors mapped from the file; of a sharded one, a folder, in memory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is cut short, or no checkpoint of Lightning.
    """
    if path.is_dir():
        return read_sharded(path)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        size = path.stat().st_size
        # torch follows its first sentence with a paragraph of guesses.
        reason = str(error).strip().partition(". ")[0].partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path}: no whole checkpoint ({size} bytes; cut short, or not a .ckpt of Lightning): {reason}"
        ) from None
    for field in ("state_dict", "global_step"):
        if not isinstance(stored, dict) or field not in stored:
            raise ValueError(f"{path}: {field} is missing: not a checkpoint of Lightning")
    return stored


def adapted_network(stored: dict[str, Any], path: Path) -> GPT | ScalarGPT | None:
    """The merged network of a checkpoint that holds an adapter; None where it holds a whole network.

    Args:
        stored: from ``read_stored``.
        path: where it was read, for errors.

    Raises:
        FileNotFoundError: the base is no longer where it was.
        ValueError: the base holds other weights now, was made in Python, or the adapter's tensors do not fit it.
    """
    record = stored.get("adapter")
    if record is None:
        return None
    base = record["base"]
    if base is None:
        raise ValueError(f"{path}: holds an adapter over a network that was made in Python: there is no base to read")
    try:
        directory = locate(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: holds an adapter, and its base is gone: {error}") from None
    if (weights := weights_fingerprint(directory)) != record["weights"]:
        raise ValueError(
            f"{path}: holds an adapter over base weights {record['weights'][:12]}, but {base} holds {weights[:12]}: "
            "it was trained again since"
        )
    state = trained_state(stored, path)
    config = LoraConfig(**record["lora"])
    network: GPT | ScalarGPT = load_scalar(directory) if "score.weight" in state else load_network(directory)
    convert_base(network, config.dtype)
    if record.get("four_bit"):
        round_matrices(network, record["four_bit"])
    add_adapter(network, config)
    learning = {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}
    _check_fit(state, learning, path)
    with torch.no_grad():
        for name, tensor in learning.items():
            tensor.copy_(state[name])
    return merged_copy(network)


def trained_state(stored: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The trained network's tensors by their names in it.

    Args:
        stored: from ``read_stored``.
        path: where it was read, for errors.

    Raises:
        ValueError: no stage of ours wrote it.
    """
    tensors = stored["state_dict"]
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    if not state:
        names = ", ".join(sorted({name.partition(".")[0] for name in tensors})) or "nothing"
        raise ValueError(f"{path}: state_dict holds {names}, no {_PREFIX}*: not a checkpoint of a stage of align")
    return state


def fill_from(network: GPT | ScalarGPT, state: dict[str, torch.Tensor], path: Path) -> None:
    """Give a network copies of a checkpoint's tensors.

    Args:
        network: of the run's shape; may be without memory.
        state: from ``trained_state``.
        path: where it was read, for errors.

    Raises:
        ValueError: a tensor is missing, surplus or of another shape.
    """
    _check_fit(state, network.state_dict(), path)
    network.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)


def _check_fit(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in expected.items():
        if name not in state:
            raise ValueError(f"{path}: {_PREFIX}{name} is missing from state_dict, which the run's network calls for")
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {_PREFIX}{name} is {list(state[name].shape)}; the run's network has {list(tensor.shape)}"
            )
    if surplus := sorted(state.keys() - expected.keys()):
        raise ValueError(f"{path}: {_PREFIX}{surplus[0]} is no part of the run's network")


METADATA = "meta.pt"
"""Lightning's file in the folder; written last, so a folder without it is not whole"""

_KNOWN = {
    "torch.distributed.checkpoint.metadata": None,
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}
"""What a .metadata file of torch names; None: everything of that module"""


def read_sharded(folder: Path, *, only_weights: bool = True) -> dict[str, Any]:
    """A sharded checkpoint's contents, on the CPU; nothing but tensors and plain values is unpickled.

    Args:
        folder: as Lightning's ModelParallelStrategy writes it.
        only_weights: leave out the optimizer's state.

    Returns:
        As a ``.ckpt`` file holds it: ``state_dict``, ``global_step`` and the rest; with ``only_weights=False`` also
        ``optimizer_states``, whose parameters have names instead of numbers.

    Raises:
        ValueError: it is not whole, or not of that format.
    """
    if not (folder / METADATA).is_file():
        raise ValueError(f"{folder}: no whole sharded checkpoint: {METADATA}, which is written last, is missing")
    stored: dict[str, Any] = torch.load(folder / METADATA, map_location="cpu", weights_only=True)
    parts: dict[str, Any] = {}
    try:
        planner = _Planner(keys={"state_dict"} if only_weights else None)
        _load_state_dict(parts, storage_reader=_Reader(folder), planner=planner, no_dist=True)
    except (CheckpointException, OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        # torch wraps what a reader raises, once for each rank.
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        reason = str(cause).partition("\n")[0] or type(cause).__name__
        raise ValueError(f"{folder}: no whole sharded checkpoint: {reason}") from None
    optimizers = sorted(name for name in parts if name.startswith("optimizer_"))
    states = {"optimizer_states": [parts[name] for name in optimizers]} if optimizers else {}
    return {**stored, "state_dict": parts["state_dict"], **states}


def shards_damage(folder: Path) -> str | None:
    """What is wrong with the parts of tensors, read from end to end, one part in memory at a time.

    Each part is a zip archive of its own within a rank's file, with a CRC-32 that torch writes and does not read.

    Args:
        folder: of a checkpoint whose ``.metadata`` is there.

    Returns:
        str: the reason; None for whole ones.
    """
    try:
        parts = sorted(_Reader(folder).read_metadata().storage_data.values(), key=lambda p: (p.relative_path, p.offset))
    except Exception:  # whatever a flipped bit makes of a pickle
        return ".metadata is cut short or overwritten"
    for name, own in groupby(parts, key=lambda part: str(part.relative_path)):
        if not (folder / name).is_file():
            return f"{name} is missing"
        with (folder / name).open("rb") as file:
            for part in own:
                file.seek(part.offset)
                try:
                    with zipfile.ZipFile(io.BytesIO(file.read(part.length))) as archive:
                        wrong = archive.testzip()
                except Exception:  # whatever a flipped bit makes of a header
                    return f"{name} is cut short or overwritten at byte {part.offset:,}"
                if wrong is not None:
                    return f"the checksum of {name} at byte {part.offset:,} is wrong"
    return None


class _Planner(_EmptyStateDictLoadPlanner):
    """Reads whatever the folder holds."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """Plain values, such as a learning rate."""
        name = read_item.dest_index.fqn
        set_element(self.original_state_dict, self.mappings[name], torch.load(value, weights_only=True))


class _Reader(FileSystemReader):
    """As torch's, but for what it lets a .metadata file name."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Where each tensor's parts are."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _Unpickler(file).load()
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        """Refuse everything that torch does not write."""
        if module in _KNOWN and (_KNOWN[module] is None or name in (_KNOWN[module] or ())):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f".metadata names {module}.{name}, which torch writes in no checkpoint")
