"""Checkpoints that many processes wrote, each its part, read whole in one process.

The format is torch.distributed.checkpoint's: a folder with a file a rank, ``.metadata`` that says where each tensor's
parts are, and Lightning's ``meta.pt`` with everything else.
"""

import io
import pickle
import zipfile
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

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
