"""System calls that Python has no function for."""

import ctypes
import os
from functools import cache
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38


@cache
def _library() -> ctypes.CDLL:
    """The C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library.

    Args:
        name: of the function.
        *arguments: integers and pointers.

    Raises:
        OSError: it failed.
    """
    return checked(name, getattr(_library(), name)(*arguments))


def system_call(name: str, number: int, *arguments: object) -> int:
    """Call the kernel by number.

    Args:
        name: for the error.
        number: of the system call.
        *arguments: integers and pointers.

    Raises:
        OSError: it failed.
    """
    return checked(name, _library().syscall(ctypes.c_long(number), *arguments))


def checked(name: str, result: int) -> int:
    """The result of a call.

    Raises:
        OSError: it is negative.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
