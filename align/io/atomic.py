"""Replacing a directory so that a kill at any moment leaves the old one or the new one, whole.

The new directory is written under a hidden sibling name that holds the writer's process id, ``.model.4711.new``, is
flushed to the disk, and then exchanged with the old one in a single system call (Linux, renameat2). Where the system
or the file system cannot exchange, two renames do it: the old one becomes ``.model.4711.old``, the new one takes its
place. A kill between the two leaves no directory, but both whole ones under their hidden names; ``recover`` puts
the new one in place, and runs before every replacing and loading. One process at a time may write a directory.
"""

import ctypes
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_AT_FDCWD = -100

_RENAME_EXCHANGE = 2

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_MARKS = ("config.json", "align.json", "tokenizer.json")


@contextmanager
def replacing_directory(path: str | Path) -> Iterator[Path]:
    """Write a directory that takes ``path``'s place when the block ends well.

    Args:
        path: a model directory, or a name that is free. A link is followed.

    Yields:
        An empty directory beside it, to be filled.

    Raises:
        ValueError: ``path`` is something else: a file, or a directory that would lose what is no model.
        OSError: the disk is full (in one line that says that the old directory is untouched), or any other cause.
    """
    # 1. See that the target may go, and clear what dead processes left.
    target = Path(path).resolve()
    _check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    for leftover in _leftovers(target, "new|old"):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        fresh.mkdir()
        # 2. Let the caller write, then wait until it is on the disk.
        yield fresh
        _flush_tree(fresh)
        # 3. Swap. From here on the new directory stands.
        _put(fresh, target)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if error.errno not in _FULL:
            raise
        kept = "; the old directory is untouched" if target.exists() else ""
        raise OSError(error.errno, f"no room to write {target}: {os.strerror(error.errno)}{kept}") from error
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def recover(path: str | Path) -> None:
    """Finish the swap that a killed process left half done, if there is one.

    Args:
        path: a directory that two renames were putting in place.
    """
    target = Path(path).resolve()
    if target.exists():
        return
    # The old one lies aside only once the new one is whole.
    for old in _leftovers(target, "old"):
        new = old.with_suffix(".new")
        os.rename(new if new.exists() else old, target)
        return


def _leftovers(target: Path, kind: str) -> list[Path]:
    """Hidden siblings of ``target`` that no living process is at work on."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.({kind})")
    siblings = target.parent.iterdir() if target.parent.is_dir() else ()
    return [path for path in siblings if (match := pattern.fullmatch(path.name)) and _dead(match[1])]


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; a model directory cannot take its place")
    if target.is_dir() and any(target.iterdir()) and not any((target / mark).exists() for mark in _MARKS):
        raise ValueError(f"{target} holds files but none of {', '.join(_MARKS)}: not replacing what is no model")


def _put(fresh: Path, target: Path) -> None:
    if not target.exists():
        os.rename(fresh, target)
        _flush(target.parent)
        return
    aside = fresh
    if not _exchange(fresh, target):
        aside = fresh.with_suffix(".old")
        os.rename(target, aside)
        try:
            os.rename(fresh, target)
        except OSError:
            os.rename(aside, target)
            raise
    _flush(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where that cannot be done."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _flush_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            _flush(Path(folder, name))
        _flush(Path(folder))


def _flush(path: Path) -> None:
    if sys.platform == "win32":  # Windows opens no folder, and flushes only files that are open for writing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _dead(pid: str) -> bool:
    # A directory of our own id is a leftover too: ids come round again, in containers at once.
    if int(pid) == os.getpid():
        return True
    if sys.platform == "win32":  # where signal 0 is Ctrl-C
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@contextmanager
def replacing_file(path: Path) -> Iterator[TextIO]:
    """Write a file that takes ``path``'s place, whole, when the block ends well; else the old one stays.

    Args:
        path: the file, there or not.

    Yields:
        TextIO: to write to.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
