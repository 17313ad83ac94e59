"""A process without network, that sees no other processes, with a file system of its own for what it writes."""

import os
import signal
import sys

from align.execution.kernel import PR_SET_PDEATHSIG, call

_NEW_MOUNTS, _NEW_USER, _NEW_PROCESSES = 0x00020000, 0x10000000, 0x20000000
_NEW_NETWORK, _NEW_IPC, _NEW_NAMES = 0x40000000, 0x08000000, 0x04000000
_RECURSIVE, _PRIVATE, _NO_SUID, _NO_DEVICES, _NO_EXEC = 0x4000, 0x40000, 2, 4, 8


def enter_namespaces() -> None:
    """Leave the user, network, process, mount and IPC namespaces of the system, without privileges.

    Raises:
        OSError: the kernel does not let this process.
    """
    user, group = os.getuid(), os.getgid()
    flags = _NEW_USER | _NEW_MOUNTS | _NEW_PROCESSES | _NEW_NETWORK | _NEW_IPC | _NEW_NAMES
    call("unshare", flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def mount_scratch(folder: str, *, mebibytes: int) -> None:
    """A file system in memory over a folder, which this process and its children alone see.

    Args:
        folder: an empty one.
        mebibytes: its size.

    Raises:
        OSError: mounting is not allowed.
    """
    call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)
    options = f"size={mebibytes}m,nr_inodes=4096,mode=700".encode()
    call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", _NO_SUID | _NO_DEVICES | _NO_EXEC, options)


def continue_as_first_process() -> None:
    """Go on in a child, process 1 of the new namespace, with whose end everything in it ends.

    The process that called waits for the child and ends as it did. If it is killed, the child is too.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        sys.stdout = sys.stderr = None
        os._exit(128 - code if code < 0 else code)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
