"""Programs that mean harm do none and count as failed; each protection also alone, where the others are missing."""

import os
import platform
import signal
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from align.execution import Limits, protections, run_program
from align.execution.seccomp import filter_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs run on Linux only")
LIMITS = Limits(cpu_seconds=2, wall_seconds=6.0, memory_mib=512, file_mib=2, disk_mib=8)


def need(*names: str) -> None:
    """Skip where the kernel does not grant these protections."""
    missing = {name: why for name in names if (why := protections()[name])}
    if missing:
        pytest.skip(f"this system grants no {missing}")


def run(source: str, **limits):
    outcome = run_program(source, LIMITS if not limits else Limits(**(vars(LIMITS) | limits)))
    assert outcome.seconds < LIMITS.wall_seconds + 5
    return outcome


def test_a_good_program_passes_and_a_wrong_one_tells_why() -> None:
    good = run("import math, re, json, collections, datetime\nprint(math.gcd(12, 18))\nassert re.match('a+', 'aa')")
    assert (good.passed, good.reason, good.output) == (True, "", "6\n")
    wrong = run("def add(a, b): return a - b\nassert add(1, 2) == 3, 'sum'")
    assert (wrong.passed, wrong.reason) == (False, "AssertionError: sum")


def test_threads_and_the_folder_can_be_used() -> None:
    source = """
import os, threading, tempfile
found = []
thread = threading.Thread(target=lambda: found.append(1)); thread.start(); thread.join()
open("a.txt", "w").write("x"); assert open("a.txt").read() == "x" and found == [1]
assert os.listdir(".") == ["a.txt"] and dict(os.environ).keys() <= {"LC_CTYPE"}
"""
    outcome = run(source)
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    "source",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['/bin/true'])",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import multiprocessing\np = multiprocessing.Process(target=print); p.start(); p.join()\nassert not p.exitcode",
    ],
    ids=["fork bomb", "subprocess", "exec", "spawn", "multiprocessing"],
)
def test_no_process_is_started(source: str) -> None:
    need("calls")
    outcome = run(source)
    assert not outcome.passed
    assert "Permission" in outcome.output


def test_memory_is_bounded() -> None:
    outcome = run("a = []\nwhile True: a.append(bytearray(10_000_000))")
    assert (outcome.passed, outcome.reason) == (False, "MemoryError")


def test_processor_time_is_bounded() -> None:
    for source in ("while True: pass", "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: 0)\nwhile True: pass"):
        outcome = run(source, cpu_seconds=1)
        assert not outcome.passed


def test_sleepers_that_ignore_signals_are_killed() -> None:
    source = """
import signal, time
for number in range(1, 64):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
time.sleep(60)
"""
    outcome = run(source, wall_seconds=2.0)
    assert (outcome.passed, outcome.reason) == (False, "not finished after 2 s")


def test_endless_output_is_bounded() -> None:
    outcome = run("while True: print('x' * 10_000)")
    assert not outcome.passed
    assert len(outcome.output) <= 64 * 1024


def test_files_are_bounded() -> None:
    assert not run("f = open('a', 'wb')\nwhile True: f.write(b'x' * 1_000_000)").passed
    need("scratch")
    many = "for i in range(100): open(str(i), 'wb').write(b'x' * 1_000_000)"
    assert "No space left" in run(many).output
    names = "for i in range(10_000): open(str(i), 'wb').close()"
    assert not run(names).passed


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/proc/1/environ", "/proc/self/environ", "/proc/version", "{secret}", "{link}"]
)
def test_other_files_are_not_read(path: str, tmp_path: Path) -> None:
    need("files")
    secret = tmp_path / "secret"
    secret.write_text("treasure")
    source = (
        "import os\nos.symlink(PATH, 'link')\nprint(open('link').read())"
        if path == "{link}"
        else ("print(open(PATH).read())")
    )
    path = str(secret) if path in ("{secret}", "{link}") else path
    outcome = run(f"PATH = {path!r}\n{source}")
    assert not outcome.passed
    assert "treasure" not in outcome.output
    assert "PermissionError" in outcome.reason


def test_other_files_are_not_changed(tmp_path: Path) -> None:
    need("files")
    victim = tmp_path / "victim"
    victim.write_text("whole")
    os.chmod(tmp_path, 0o777)
    os.chmod(victim, 0o666)
    for source in (
        f"open({str(victim)!r}, 'w').write('x')",
        f"import os; os.remove({str(victim)!r})",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import os; os.rename({str(victim)!r}, 'stolen')",
        f"import os; os.link({str(victim)!r}, 'stolen')",
        f"import os; os.truncate({str(victim)!r}, 0)",
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
    ):
        assert not run(source).passed, source
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
    assert victim.read_text() == "whole"


def test_nothing_is_reached_over_the_network() -> None:
    need("calls")
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        for source in (
            f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}')",
            f"import socket; socket.create_connection(('127.0.0.1', {port}))",
            "import socket; socket.socket(socket.AF_UNIX)",
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        ):
            assert not run(source).passed
        server.shutdown()
    assert not asked


def test_the_parent_is_not_killed() -> None:
    need("calls")
    for source in (
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        f"import os, signal; os.kill({os.getpid()}, signal.SIGTERM)",
        "import os, signal; os.killpg(0, signal.SIGKILL)",
        "import os, signal; os.kill(-1, signal.SIGKILL)",
    ):
        assert not run(source).passed


@pytest.mark.parametrize(
    "source",
    [
        "import os; os._exit(0)",
        "raise SystemExit",
        "import sys; sys.exit(0)",
        "import os; os.abort()",
        "import ctypes; ctypes.string_at(0)",
    ],
)
def test_an_early_end_is_no_pass(source: str) -> None:
    """A program that ends before its tests run has passed none."""
    assert not run(source + "\nassert False").passed


def test_a_pass_that_the_program_claims_itself_does_not_count() -> None:
    source = """
import os
for number in range(3, 64):
    try: os.write(number, b'{}\\n0123456789abcdef')
    except OSError: pass
os._exit(0)
"""
    assert not run(source).passed


def test_no_process_is_left(tmp_path: Path) -> None:
    """A program that sleeps in threads and is killed leaves no process that mentions its folder."""
    sleepers = "for _ in range(20): threading.Thread(target=time.sleep, args=(60,)).start()"
    run(f"import threading, time\n{sleepers}\ntime.sleep(60)", wall_seconds=1.5)
    time.sleep(0.2)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
    assert not [command for command in commands if b"align.execution.child" in command]


def test_rights_are_not_regained() -> None:
    need("calls")
    source = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(1, 0, 0, 0, 0) == 0, "outlives its parent"
"""
    assert "outlives" in run(source).reason
    for source in (
        "libc.unshare(0x10000000)",
        "libc.mount(b'x', b'/', b'tmpfs', 0, None)",
        "libc.setsid()",
        "libc.ptrace(16, 1, 0, 0)",
    ):
        outcome = run(f"import ctypes\nlibc = ctypes.CDLL(None)\nassert {source} >= 0")
        assert outcome.reason.startswith("AssertionError"), source


def test_the_filter_by_hand() -> None:
    """Every instruction has eight bytes, jumps stay inside, and the last one allows."""
    for machine in ("x86_64", "aarch64"):
        code = filter_of(machine)
        steps = [struct.unpack("=HBBI", code[i : i + 8]) for i in range(0, len(code), 8)]
        for number, (operation, yes, no, _) in enumerate(steps):
            if operation & 7 == 5:
                assert number + 1 + max(yes, no) < len(steps)
        assert steps[-1] == (6, 0, 0, 0x7FFF0000)
    with pytest.raises(OSError, match="riscv"):
        filter_of("riscv64")


def test_calls_that_are_refused_have_the_right_numbers() -> None:
    """Numbers of system calls, as the C library's own headers have them for this processor."""
    if platform.machine() != "x86_64":
        pytest.skip("the numbers are checked on x86_64")
    from align.execution.seccomp import _DENIED

    known = {"execve": 59, "socket": 41, "kill": 62, "ptrace": 101, "mount": 165, "setsid": 112, "bpf": 321}
    assert {name: _DENIED[name][0] for name in known} == known


def test_limits_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="memory_mib"):
        Limits(memory_mib=0)


def test_signals_have_names() -> None:
    """The first process of a namespace survives its own SIGABRT, and the C library then ends it with another."""
    assert run("import os; os.abort()").reason in {
        f"killed by {name.name}" for name in (signal.SIGABRT, signal.SIGSEGV)
    }
