"""Runs a command and ends it, with every process that it started, when the process that wanted it is gone.

A trainer that is killed can't stop its engine, and an engine's own children outlive it when it is killed. So the engine
runs under this script, which polls for both. It needs nothing but Python: ``python guard.py PARENT FOLDERS COMMAND``,
with the trainer's process id, folders to delete at the end, separated by colons, and a command, or none to delete only.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

_POLL, _PATIENCE = 0.2, 5.0
"""Seconds between two looks at the processes, and that the command has to end on its own"""

_SET_CHILD_SUBREAPER, _SET_PARENT_DEATH_SIGNAL = 36, 1
"""Of Linux's prctl"""


def main(parent: int, folders: list[str], command: list[str]) -> int:
    """Run the command until it ends, the parent is gone, or SIGTERM comes; returns its exit status."""
    asked = _Asked()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, asked)
    _prctl(_SET_CHILD_SUBREAPER)  # what the command leaves behind becomes a child of this process
    child = subprocess.Popen(command, preexec_fn=_die_with_parent) if command else None  # noqa: PLW1509
    while os.getppid() == parent and not asked.end and (child is None or child.poll() is None):
        time.sleep(_POLL)
    status = None if child is None else child.poll()
    if child is not None and status is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE)
        status = 0
    _kill_descendants()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if status is None else status if status >= 0 else 128 - status


class _Asked:
    end = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.end = True


def _prctl(option: int, value: int = 1) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _die_with_parent() -> None:
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _kill_descendants() -> None:
    """Kill children until there are none: orphans of a killed child become children of this process."""
    while pids := _children():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        pass
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), [folder for folder in sys.argv[2].split(":") if folder], sys.argv[3:]))
