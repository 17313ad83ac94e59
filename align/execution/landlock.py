"""Files and networks that a process may not reach, by Landlock (Linux 5.13 and later).

A process restricts itself, and neither it nor its children can take that back. Links lead to what they point at, so
they are no way out. https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import os
from collections.abc import Sequence

from align.execution.kernel import PR_SET_NO_NEW_PRIVS, call, system_call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Version of the interface -> number of file rights that it knows, which are the lowest bits"""
_OF_FILES = _EXECUTE | 1 << 1 | _READ_FILE | 1 << 14 | 1 << 15
"""Rights that make sense for a file; the others are a directory's"""


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Version of the interface; 0 where the kernel has none."""
    try:
        return system_call("landlock_create_ruleset", _CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    except OSError:
        return 0


def restrict_files(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Deny this process all files but some; also TCP, and signals to others, where the kernel can.

    Args:
        readable: files and directories that may be read, with what is beneath them; missing ones are skipped.
        writable: those that may be changed too.

    Raises:
        OSError: the kernel has no Landlock.
    """
    known = version()
    if not known:
        raise OSError("the kernel has no Landlock")
    files = (1 << max(count for first, count in _RIGHTS.items() if first <= known)) - 1
    ruleset = _Ruleset(files, 0b11 if known >= 4 else 0, 0b11 if known >= 6 else 0)
    size = 8 if known < 4 else 16 if known < 6 else 24
    handle = system_call("landlock_create_ruleset", _CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    for paths, allowed in ((readable, _READ_FILE | _READ_DIR), (writable, files & ~_EXECUTE)):
        for path in paths:
            _allow(handle, path, allowed & files)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    system_call("landlock_restrict_self", _RESTRICT_SELF, handle, 0)
    os.close(handle)


def _allow(handle: int, path: str, allowed: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):
        allowed &= _OF_FILES
    rule = _PathBeneath(allowed, place)
    system_call("landlock_add_rule", _ADD_RULE, handle, _PATH_BENEATH, ctypes.byref(rule), 0)
    os.close(place)
