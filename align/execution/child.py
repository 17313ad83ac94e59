"""What happens inside the process that runs a program: give up every right, then run it.

Started by ``runner``; reads the order from stdin as JSON, writes what it achieved to the file descriptor that the order
names: first the protections, then, if the program came to its end, the order's token.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from align.execution.landlock import restrict_files
from align.execution.namespaces import continue_as_first_process, enter_namespaces, mount_scratch
from align.execution.seccomp import restrict_calls

_READABLE = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def main() -> None:
    """Run the program of the order on stdin."""
    order = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    report = order["report"]
    held = _protect(order)
    os.write(report, (json.dumps(held) + "\n").encode())
    # The order is out of the program's sight, except for one that searches this process's memory.
    source, token = order.pop("source"), order.pop("token")
    namespace = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(source, "<program>", "exec"), namespace)
    sys.stdout.flush()
    os.write(report, token.encode())
    os._exit(0)  # handlers and threads of the program have no say any more


def _protect(order: Mapping[str, Any]) -> dict[str, str]:
    """Give up rights; returns each protection with why it is missing, an empty text if it holds."""
    folder, limits = order["folder"], order["limits"]
    held: dict[str, str] = {}

    def attempt(name: str, protect: Callable[[], None]) -> bool:
        try:
            protect()
            held[name] = ""
        except (OSError, AttributeError, ValueError) as error:
            held[name] = str(error) or type(error).__name__
        return not held[name]

    alone = attempt("namespaces", enter_namespaces)
    if alone:
        attempt("scratch", lambda: mount_scratch(folder, mebibytes=limits["disk_mib"]))
        continue_as_first_process()
    os.chdir(folder)
    os.umask(0o077)
    attempt("limits", lambda: _limit(limits))
    _import_before_files_close()
    readable = [*_READABLE, *_DEVICES, sys.base_prefix, sys.base_exec_prefix]
    attempt("files", lambda: restrict_files(readable, [folder, "/dev/null"]))
    attempt("calls", restrict_calls)
    return held


def _limit(limits: Mapping[str, Any]) -> None:
    import resource  # which Windows does not have

    mebi = 2**20
    memory, file, seconds = limits["memory_mib"] * mebi, limits["file_mib"] * mebi, limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file, file))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _import_before_files_close() -> None:
    """Load what Python loads late, for tracebacks and text."""
    for name in ("traceback", "linecache", "encodings.idna", "encodings.latin_1", "unicodedata"):
        with suppress(ImportError):
            __import__(name)
