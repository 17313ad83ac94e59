"""One process at a time in a run folder."""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LOCK = ".lock"
_ORPHANS = 10.0
"""Seconds for which data workers may outlive their killed parent and hold the lock that they inherited"""


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a run folder; the operating system releases the lock when the process ends, however it ends.

    Args:
        folder: created if it is missing.

    Raises:
        ValueError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _LOCK
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + _ORPHANS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = _holder(file)
                if _lives(holder) or time.monotonic() > deadline:
                    raise ValueError(
                        f"{folder} is in use by {_name(holder)}: wait for it to finish, or stop it"
                    ) from None
                time.sleep(0.2)
            except OSError as error:
                print(f"{file}: this file system does not support locks ({error.strerror}): nothing prevents a "
                      "second process from using the folder", file=sys.stderr)  # fmt: skip
                break
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}  # the holder has not written its name yet


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the holder is still running; a holder on another host is assumed to be."""
    if holder.get("host") != socket.gethostname():
        return bool(holder)
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _name(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
