"""Checkpoints as files: written whole or not at all, checked before they are believed, the newest whole one found."""

import copy
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override

from align.io.atomic import flush, flush_tree
from align.io.lightning_checkpoint import METADATA as _META
from align.io.lightning_checkpoint import read_sharded, shards_damage

LAST = "last.ckpt"
"""The newest; the ones before it are last-1.ckpt, last-2.ckpt, ..."""

_ASIDE = "last-0.ckpt"
"""The newest while a directory takes its name, which needs two renamings: a kill between them leaves it so"""


class BackgroundIO(TorchCheckpointIO):
    """Copies a checkpoint into memory at once and takes it to the disk in a thread, while training goes on.

    One checkpoint is on its way at a time: who saves the next waits for it. Lightning's own plugin writes through the
    system's temporary folder, which may lie on another disk, and returns before the file is safe there.
    """

    def __init__(self) -> None:
        """Nothing on its way."""
        self._executor: ThreadPoolExecutor | None = None
        self._error: BaseException | None = None

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Copy now, write later.

        Raises:
            OSError: the one before could not be written.
        """
        self.finish()
        self.later(partial(_write, Path(path), _copied(checkpoint)))

    @override
    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """A file's contents; of a folder that many processes wrote, their parts put together."""
        if Path(path).is_dir():
            return read_sharded(Path(path), only_weights=False)
        return super().load_checkpoint(path, map_location, weights_only)

    @override
    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file or a directory, behind what is on its way."""
        self.later(partial(remove, Path(path)))

    def later(self, job: Callable[[], None]) -> None:
        """Do ``job`` behind the ones before it, unless one of them failed."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._executor.submit(self._do, job)

    def finish(self) -> None:
        """Wait for what is on its way.

        Raises:
            OSError: it could not be written.
        """
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    @override
    def teardown(self) -> None:
        """Wait for what is on its way; see ``finish``."""
        self.finish()

    def _do(self, job: Callable[[], None]) -> None:
        if self._error is None:
            try:
                job()
            except BaseException as error:
                self._error = error


def _copied(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint as it is now, in the CPU's memory; tensors that are one stay one."""
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    known: dict[int, Any] = {}
    for tensor in _tensors(checkpoint):
        place = tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()
        if place not in copies:
            copies[place] = tensor.detach().to("cpu", copy=True)
        known[id(tensor)] = copies[place]
    return copy.deepcopy(checkpoint, known)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _write(path: Path, checkpoint: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        torch.save(checkpoint, file)


def temporary(folder: Path) -> Path:
    """Where the next checkpoint is written before it gets its names; nobody takes it for one."""
    return folder / ".new.part"


def publish(
    new: Path, *, last: Path, keep_last: int, also: Sequence[Path] = (), stale: Callable[[Path], bool] = lambda _: False
) -> None:
    """Give a checkpoint that is written its names, whole to whoever looks, at any moment, and after a power cut.

    There is a last.ckpt at every moment if they are files; a directory can't be renamed onto another, and for the
    moment between two renamings the newest is last-1.ckpt or last-0.ckpt (``find_whole`` looks there).

    Args:
        new: a file, or a directory of shards.
        last: becomes the newest.
        keep_last: so many of the newest stay, as last.ckpt, last-1.ckpt, ...
        also: other names for it.
        stale: which of the newest so far are none to go on from, and go.
    """
    flush_tree(new)
    for name in also:
        second = name.with_name(f".{name.name}.part")
        remove(second)
        _link(new, second)
        _replace(second, name)
    _put_back(last)
    older = [path for path in last.parent.glob(f"{last.stem}-*{last.suffix}") if stale(path)]
    for path in older:
        remove(path)
    if last.exists() and not stale(last):
        for age in range(keep_last - 1, 1, -1):
            younger = aged(last, age - 1)
            if younger.exists():
                _replace(younger, aged(last, age))
        if keep_last > 1:
            _second_name(last, aged(last, 1))
    aside = last.with_name(_ASIDE)
    if last.exists() and (last.is_dir() or new.is_dir()):
        last.replace(aside)
    new.replace(last)
    flush(new.parent)
    remove(aside)


def aged(last: Path, age: int) -> Path:
    """The name of the checkpoint that is ``age`` older than the newest."""
    return last.with_name(f"{last.stem}-{age}{last.suffix}") if age else last


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_litter(folder: Path) -> None:
    """Remove what a killed process left half written, and give the newest its name back."""
    for path in folder.glob(".*.part"):
        remove(path)
    _put_back(folder / LAST)


def _put_back(last: Path) -> None:
    """After a kill: what was set aside for a new one is the newest, unless that has taken its place."""
    aside = last.with_name(_ASIDE)
    if last.exists():
        remove(aside)
    elif aside.exists():
        aside.replace(last)


def _replace(old: Path, new: Path) -> None:
    """Rename; a directory can't be renamed onto another."""
    if new.is_dir() or old.is_dir():
        remove(new)
    old.replace(new)


def _second_name(old: Path, new: Path) -> None:
    """Have ``old`` be there under both names, or where that can't be, under ``new`` alone."""
    part = new.with_name(f".{new.name}.part")
    remove(part)
    try:
        os.link(old, part)
    except OSError:  # a directory, or a file system without hard links
        _replace(old, new)
        return
    _replace(part, new)
    # Renaming does nothing where both names were the same file's, as a kill in mid-publish leaves them.
    remove(part)


def _link(old: Path, new: Path) -> None:
    """The same bytes by a second name; a copy where the file system has no hard links."""

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


# Reading.


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, read from end to end.

    A file is a zip archive with a CRC-32 of each tensor, which torch writes and does not read; so is each part of a
    tensor in a directory of shards.

    Args:
        path: a file, or a directory of shards.

    Returns:
        str: the reason; None for a whole one.
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
    except Exception:  # whatever a flipped bit makes of a header
        return f"it is cut short or overwritten ({size:,} bytes)"
    return None if wrong is None else f"the checksum of {wrong} is wrong"


def absence(path: Path) -> str | None:
    """What ``damage`` says, by a look at the name alone."""
    return None if path.exists() else "there is no such file"


def find_whole(folder: Path, warn: Callable[[str], None], judge: Callable[[Path], str | None] = damage) -> Path | None:
    """The newest whole checkpoint of a run.

    Args:
        folder: ``RUN/checkpoints``.
        warn: is told, in one line each, which newer ones are damaged.
        judge: says what is wrong with one, or None.

    Returns:
        Path: last.ckpt, or what comes nearest; None where there is none at all.

    Raises:
        ValueError: there are some, and none is whole.
    """
    candidates = sorted(folder.glob("*.ckpt"), key=_age)
    damaged: list[str] = []
    for path in candidates:
        reason = judge(path)
        if reason is None:
            for line in damaged:
                warn(f"{line}; going on from {path.name}, the one before")
            return path
        damaged.append(f"{path} is damaged: {reason}")
    if damaged:
        raise ValueError(f"no checkpoint in {folder} is whole: {'; '.join(damaged)}; remove them to start anew")
    return None


def global_step(path: Path) -> int | None:
    """Optimizer steps before a checkpoint, without reading its tensors; None if it can't be read."""
    try:
        stored = torch.load(path / _META if path.is_dir() else path, map_location="cpu", weights_only=True, mmap=True)
        return int(stored["global_step"])
    except Exception:  # damaged, in any way; who wants to know how asks ``damage``
        return None


def _age(path: Path) -> tuple[bool, float, str]:
    """Newest first: last.ckpt and those that it replaced, then the named ones by steps (they may be of another try)."""
    named = re.search(r"step=(\d+)", path.name)
    age = re.fullmatch(r"last(?:-(\d+))?\.ckpt", path.name)
    return age is None, float(age[1] or -1) if age else -float(named[1] if named else 0), path.name
