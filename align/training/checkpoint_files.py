"""Checkpoint files: written atomically, checked before use, and the newest whole one found."""

import copy
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override

from align.io.atomic import flush, flush_tree
from align.io.lightning_checkpoint import METADATA as _META
from align.io.lightning_checkpoint import read_sharded, shards_damage

LAST = "last.ckpt"
"""The newest; older ones are last-1.ckpt, last-2.ckpt, ..."""

SETTINGS = "settings"
"""Key of a checkpoint: the run's settings, by key"""

_ASIDE = "last-0.ckpt"
"""Temporary name of the newest while a directory replaces it in two renames; a kill between them leaves it"""


class BackgroundIO(TorchCheckpointIO):
    """Copies a checkpoint to CPU memory, then writes it in a background thread while training continues.

    One checkpoint is written at a time: saving another waits for it. Lightning's own asynchronous plugin writes through
    the system's temporary directory, which may be on another disk, and does not wait until the data is on disk.
    """

    def __init__(self) -> None:
        """Nothing is being written."""
        self._executor: ThreadPoolExecutor | None = None
        self._error: BaseException | None = None

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Copy the checkpoint, and write it in the background.

        Raises:
            OSError: the previous one could not be written.
        """
        self.finish()
        self.later(partial(_write, Path(path), _copied(checkpoint)))

    @override
    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file, or a directory of shards, which is gathered."""
        if Path(path).is_dir():
            return read_sharded(Path(path), only_weights=False)
        return super().load_checkpoint(path, map_location, weights_only)

    @override
    def remove_checkpoint(self, path: Any) -> None:
        """Delete a file or a directory, after pending writes."""
        self.later(partial(remove, Path(path)))

    def later(self, job: Callable[[], None]) -> None:
        """Run ``job`` after the pending ones, unless one of them fails."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._executor.submit(self._do, job)

    def finish(self) -> None:
        """Wait for pending jobs.

        Raises:
            OSError: a checkpoint could not be written.
        """
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    @override
    def teardown(self) -> None:
        """Wait for pending jobs; see ``finish``."""
        self.finish()

    def _do(self, job: Callable[[], None]) -> None:
        if self._error is None:
            try:
                job()
            except BaseException as error:
                self._error = error


def _copied(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy of the checkpoint in CPU memory; tensors that share memory still do."""
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    known: dict[int, Any] = {}
    for tensor in _tensors(checkpoint):
        key = tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        known[id(tensor)] = copies[key]
    return copy.deepcopy(checkpoint, known)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _write(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a new file, which is removed again if the disk is full: other files may need the room.

    Raises:
        OSError: it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    output = _Watched(path)
    try:
        with output:
            torch.save(checkpoint, output)
            output.flush()
    except Exception as error:
        path.unlink(missing_ok=True)
        # torch reports a failed write as a RuntimeError of its own, without the system's reason.
        cause = output.error or error
        if not isinstance(cause, OSError):
            raise
        raise unwritten(path, cause) from error


def unwritten(path: Path, cause: BaseException) -> OSError:
    """The error for a checkpoint that can't be written, such as on a full disk."""
    number = cause.errno if isinstance(cause, OSError) else None
    reason = os.strerror(number) if number else f"{type(cause).__name__}: {cause}"
    line = f"can't write a checkpoint to {path.parent}: {reason}; make room, then resume from the one before it"
    return OSError(number, line) if number else OSError(line)


class _Watched(BufferedWriter):
    """A file that remembers why a write failed."""

    error: OSError | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path, "wb"))

    @override
    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError as error:
            self.error = error
            raise
        return written


def temporary(folder: Path) -> Path:
    """Where a checkpoint is written before it is published."""
    return folder / ".new.part"


def publish(
    new: Path, *, last: Path, keep_last: int, also: Sequence[Path] = (), stale: Callable[[Path], bool] = lambda _: False
) -> None:
    """Give a written checkpoint its names, so that a kill or a power failure at any moment leaves whole ones.

    If checkpoints are files, last.ckpt exists at every moment. A directory can't be renamed onto another: between two
    renames the newest is last-1.ckpt or last-0.ckpt, where ``find_whole`` looks too.

    Args:
        new: a file, or a directory of shards.
        last: its name as the newest.
        keep_last: how many recent ones to keep, as last.ckpt, last-1.ckpt, ...
        also: further names for it.
        stale: which recent ones must not be resumed from and are deleted.
    """
    flush_tree(new)
    for name in also:
        second = name.with_name(f".{name.name}.part")
        remove(second)
        _link(new, second)
        _replace(second, name)
    _restore(last)
    older = [path for path in last.parent.glob(f"{last.stem}-*{last.suffix}") if stale(path)]
    for path in older:
        remove(path)
    if last.exists() and not stale(last):
        for age in range(keep_last - 1, 1, -1):
            younger = aged(last, age - 1)
            if younger.exists():
                _replace(younger, aged(last, age))
        if keep_last > 1:
            _alias(last, aged(last, 1))
    aside = last.with_name(_ASIDE)
    if last.exists() and (last.is_dir() or new.is_dir()):
        last.replace(aside)
    new.replace(last)
    flush(new.parent)
    remove(aside)


def aged(last: Path, age: int) -> Path:
    """The name of the checkpoint ``age`` saves before the newest."""
    return last.with_name(f"{last.stem}-{age}{last.suffix}") if age else last


def remove(path: Path) -> None:
    """Delete a file or a directory, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left unfinished, and restore the newest checkpoint's name."""
    for path in folder.glob(".*.part"):
        remove(path)
    _restore(folder / LAST)


def _restore(last: Path) -> None:
    """Rename last-0.ckpt back to last.ckpt, if a kill prevented its replacement."""
    aside = last.with_name(_ASIDE)
    if last.exists():
        remove(aside)
    elif aside.exists():
        aside.replace(last)


def _replace(old: Path, new: Path) -> None:
    """Rename, deleting the target first if a directory is involved."""
    if new.is_dir() or old.is_dir():
        remove(new)
    old.replace(new)


def _alias(old: Path, new: Path) -> None:
    """Link ``new`` to ``old``, or rename where links are not possible."""
    part = new.with_name(f".{new.name}.part")
    remove(part)
    try:
        os.link(old, part)
    except OSError:  # a directory, or a file system without hard links
        _replace(old, new)
        return
    _replace(part, new)
    # A rename between two links to one file, which a kill during publishing can leave, does nothing.
    remove(part)


def _link(old: Path, new: Path) -> None:
    """Hard-link ``new`` to ``old``, or copy where the file system has no hard links."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copyfile(one, other)
            flush(Path(other))

    if old.is_dir():
        shutil.copytree(old, new, copy_function=link)
    else:
        link(str(old), str(new))


# Reading checkpoints.


def damage(path: Path) -> str | None:
    """Read a checkpoint from end to end and report what is wrong with it.

    A file is a zip archive with a CRC-32 per tensor, which torch writes but does not check; so is each shard in a
    directory.

    Args:
        path: a file, or a directory of shards.

    Returns:
        str: what is wrong; None if it is whole.
    """
    if path.is_dir():
        for name in (_META, ".metadata"):
            if not (path / name).is_file():
                return f"{name} is missing"
        if (reason := shards_damage(path)) is not None:
            return reason
        path = path / _META
    try:
        size = path.stat().st_size
        if not size:
            return "it is empty"
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except FileNotFoundError:
        return "there is no such file"
    except Exception:  # a corrupt header can raise anything
        return f"it is truncated or overwritten ({size:,} bytes)"
    return None if wrong is None else f"the checksum of {wrong} is wrong"


def absence(path: Path) -> str | None:
    """Like ``damage``, but checks only whether the path exists."""
    return None if path.exists() else "there is no such file"


def find_whole(folder: Path, warn: Callable[[str], None], judge: Callable[[Path], str | None] = damage) -> Path | None:
    """Find the newest whole checkpoint of a run.

    Args:
        folder: ``RUN/checkpoints``.
        warn: called with one line per newer checkpoint that is damaged.
        judge: returns what is wrong with a checkpoint, or None.

    Returns:
        Path: last.ckpt, or the next newest; None if there are no checkpoints.

    Raises:
        ValueError: there are checkpoints, but none is whole.
    """
    candidates = sorted(folder.glob("*.ckpt"), key=_age)
    damaged: list[str] = []
    for path in candidates:
        reason = judge(path)
        if reason is None:
            for line in damaged:
                warn(f"{line}; resuming from {path.name}")
            return path
        damaged.append(f"{path} is damaged: {reason}")
    if damaged:
        raise ValueError(f"every checkpoint in {folder} is damaged: {'; '.join(damaged)}; delete them to start over")
    return None


def global_step(path: Path) -> int | None:
    """Optimizer steps of a checkpoint, without reading its tensors; None if it can't be read."""
    step: int | None = read_fields(path).get("global_step")
    return step


def read_fields(path: Path) -> dict[str, Any]:
    """A checkpoint's fields, with tensors that are not read before they are used; empty if it can't be read."""
    try:
        stored = torch.load(path / _META if path.is_dir() else path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # damaged in any way; ``damage`` says how
        return {}
    return stored if isinstance(stored, dict) else {}


def _age(path: Path) -> tuple[bool, float, str]:
    """Sort key, newest first: last.ckpt and its predecessors, then named ones by step (maybe of another attempt)."""
    named = re.search(r"step=(\d+)", path.name)
    age = re.fullmatch(r"last(?:-(\d+))?\.ckpt", path.name)
    return age is None, float(age[1] or -1) if age else -float(named[1] if named else 0), path.name
