"""Files and directories that are replaced whole: a kill at any moment leaves the old one or the new one.

This is the only module that writes under a temporary name and renames. ``replacing_file`` and ``replacing_directory``
replace what is there; ``creating_directory`` lets the first of several concurrent writers win.

A model directory is written under a hidden sibling name with the writer's process id, ``.model.4711.new``, flushed to
disk, and exchanged with the old one in a single system call (Linux, renameat2). Where the system or the file system
can't do that, two renames replace it: the old directory becomes ``.model.4711.old``, then the new one takes its name. A
kill between the two leaves both directories, whole, under their hidden names; ``recover`` moves the new one into place
and runs before every replacement and every load. Only one process at a time may replace a directory.
"""

import ctypes
import errno
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_AT_FDCWD = -100

_RENAME_EXCHANGE = 2

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_MARKERS = ("config.json", "align.json", "tokenizer.json")


@contextmanager
def replacing_file(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Write a file that replaces ``path`` when the block ends without an error; otherwise ``path`` stays as it was.

    Args:
        path: the file, which need not exist; its directory is created. Several processes may write it, the last wins.
        binary: yield a binary file instead of a UTF-8 text file with LF line ends.

    Yields:
        The open file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{_unique()}.new")
    text: dict[str, Any] = {} if binary else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(new, "wb" if binary else "w", **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


@contextmanager
def creating_directory(path: Path) -> Iterator[Path]:
    """Fill a directory that appears at ``path``, whole, when the block ends without an error.

    Several processes may create the same directory, on several machines too: the first to finish wins, and what the
    others wrote is dropped.

    Args:
        path: the directory; its parent is created.

    Yields:
        An empty directory beside it to fill.

    Raises:
        OSError: it can't be renamed to ``path``, and no other process has created that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{_unique()}.new")
    try:
        new.mkdir()
        yield new
        flush_tree(new)
        try:
            new.rename(path)
        except OSError:
            if not (path.is_dir() and any(path.iterdir())):
                raise
        flush(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def replacing_directory(path: str | Path) -> Iterator[Path]:
    """Fill a directory that replaces the model directory ``path`` when the block ends without an error.

    Args:
        path: a model directory, or a name that is free. A link is followed.

    Yields:
        An empty directory beside it to fill.

    Raises:
        ValueError: ``path`` is a file, or a directory whose files are not a model's.
        OSError: the disk is full (the message says that the old directory is untouched), or any other cause.
    """
    # 1. Check the target, and remove what dead processes left behind.
    target = Path(path).resolve()
    _check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    for leftover in _leftovers(target, "new|old"):
        shutil.rmtree(leftover, ignore_errors=True)
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        new.mkdir()
        # 2. Let the caller write, then wait until the disk has it.
        yield new
        flush_tree(new)
        # 3. Swap.
        _swap(new, target)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if error.errno not in _FULL:
            raise
        kept = "; the old directory is untouched" if target.exists() else ""
        raise OSError(error.errno, f"no room to write {target}: {os.strerror(error.errno)}{kept}") from error
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def recover(path: str | Path) -> None:
    """Finish the swap of two renames that a kill interrupted, if there was one.

    Args:
        path: the directory that was being replaced.
    """
    target = Path(path).resolve()
    if target.exists():
        return
    # The old directory is renamed only after the new one is whole.
    for old in _leftovers(target, "old"):
        new = old.with_suffix(".new")
        os.rename(new if new.exists() else old, target)
        return


def flush(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on disk; does nothing on Windows."""
    if sys.platform == "win32":  # Windows opens no folder, and flushes only files that are open for writing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(path: Path) -> None:
    """``flush`` a file, or a directory and everything in it."""
    for folder, _, names in os.walk(path):
        for name in names:
            flush(Path(folder, name))
        flush(Path(folder))
    if path.is_file():
        flush(path)


def _unique() -> str:
    # The process id is not unique: containers that share a disk reuse small ones.
    return f"{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _leftovers(target: Path, kind: str) -> list[Path]:
    """Hidden siblings of ``target`` whose writer is dead."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.({kind})")
    siblings = target.parent.iterdir() if target.parent.is_dir() else ()
    return [path for path in siblings if (match := pattern.fullmatch(path.name)) and _dead(match[1])]


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; a model directory can't replace it")
    if target.is_dir() and any(target.iterdir()) and not any((target / marker).exists() for marker in _MARKERS):
        raise ValueError(
            f"{target} has files but none of {', '.join(_MARKERS)}: it is not a model directory, so it is not replaced"
        )


def _swap(new: Path, target: Path) -> None:
    if not target.exists():
        os.rename(new, target)
        flush(target.parent)
        return
    old = new
    if not _exchange(new, target):
        old = new.with_suffix(".old")
        os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            os.rename(old, target)
            raise
    flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one system call; False where the system can't."""
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


def _dead(pid: str) -> bool:
    # Our own id is a leftover too: containers reuse process ids right away.
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
