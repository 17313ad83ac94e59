"""Run an untrusted Python program in a process of its own and say how it ended."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

from align.execution.limits import Limits

_ROOT = Path(__file__).resolve().parents[2]
_START = "import sys; sys.path.append(sys.argv[1]); from align.execution.child import main; main()"
_SHOWN = 64 * 1024
"""Most bytes of what a program printed that are kept, from the end"""


class Outcome(NamedTuple):
    """How a program ended.

    Attributes:
        passed: it came to its end without an exception, within the limits.
        reason: why it did not: the last line of its traceback, or the limit that it met; empty if it passed.
        output: the end of what it printed, errors too.
        seconds: from start to end.
        missing: protections that the system did not grant -> why.
    """

    passed: bool
    reason: str
    output: str
    seconds: float
    missing: dict[str, str]


def run_program(source: str, limits: Limits = Limits()) -> Outcome:  # noqa: B008 (frozen)
    """Run a program in a fresh interpreter with the standard library, an empty folder and an empty environment.

    Where the kernel allows it, the program has no network, sees no other process, can't start any, reads the standard
    library and its folder alone, and makes only harmless system calls (``protections``). It is killed with everything
    it started when the time is over.

    Args:
        source: Python.
        limits: what it may use.

    Raises:
        OSError: this system isn't Linux, or no process can be started.
    """
    if sys.platform != "linux":
        raise OSError(
            f"programs that a model wrote run on Linux only, where they can be shut in; this is {sys.platform}: use a "
            "container or a virtual machine"
        )
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="align-run-") as folder, tempfile.TemporaryFile() as printed:
        receive, report = os.pipe()
        order = {"source": source, "token": token, "folder": folder, "limits": asdict(limits), "report": report}
        started = time.monotonic()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _START, str(_ROOT)],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                cwd="/",
                env={},
                pass_fds=(report,),
                start_new_session=True,
            )
        finally:
            os.close(report)
        try:
            late = _wait(process, json.dumps(order).encode(), limits.wall_seconds)
        finally:
            _kill(process)
            seconds = time.monotonic() - started
        with open(receive, "rb") as stream:
            lines = stream.read(_SHOWN).decode(errors="replace").split("\n")
        printed.seek(max(0, os.fstat(printed.fileno()).st_size - _SHOWN))
        output = printed.read(_SHOWN).decode(errors="replace")
    held = _held(lines[0])
    passed = process.returncode == 0 and lines[1:] == [token] and not late
    reason = "" if passed else _reason(late, process.returncode, output, limits)
    return Outcome(passed, reason, output, seconds, {name: why for name, why in held.items() if why})


def _wait(process: "subprocess.Popen[bytes]", order: bytes, seconds: float) -> bool:
    """Whether the time was over before the program was."""
    try:
        process.communicate(order, timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the process and all of its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _held(line: str) -> dict[str, str]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {"start": "the process ended before it could protect itself"}


def _reason(late: bool, code: int, output: str, limits: Limits) -> str:
    if late:
        return f"not finished after {limits.wall_seconds:g} s"
    number = -code if code < 0 else code - 128
    if code < 0 or code > 128:
        if number == signal.SIGXCPU:
            return f"more than {limits.cpu_seconds} s of CPU time"
        with suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
    last = output.rstrip().rpartition("\n")[2]
    return last if code and last else f"ended with exit code {code} before its last line"


@cache
def protections() -> dict[str, str]:
    """The protections of programs on this system, each with why it is missing; an empty text if it holds.

    ``namespaces``: no network, no sight of other processes; ``scratch``: a bound on all files together; ``limits``: CPU
    time, memory, size of a file; ``files``: no files but the standard library and the folder; ``calls``: no new
    processes, sockets, signals.
    """
    outcome = run_program("")
    names = ("namespaces", "scratch", "limits", "files", "calls")
    return {name: outcome.missing.get(name, outcome.missing.get("start", "")) for name in names}
