"""Files and directories are replaced whole or not at all: full disks, errors, kills at every step."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from align.io import atomic
from align.io.atomic import creating_directory, recover, replacing_directory, replacing_file
from align.io.location import locate

NAMES = ("config.json", "a", "b")


def fill(directory, text):
    for name in NAMES:
        (directory / name).write_text(text)


def write_half(directory, error):
    (directory / "a").write_text("half")
    raise error


def write_then_fail(file, content):
    file.write(content + content)
    raise KeyError


def contents(directory):
    return {path.name: path.read_text() for path in directory.iterdir()}


def whole(text):
    return dict.fromkeys(NAMES, text)


@pytest.fixture
def model(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    fill(target, "old")
    return target


@pytest.fixture(params=["exchange", "two renames"])
def _way(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)


@pytest.mark.usefixtures("_way")
def test_replaces(model):
    with replacing_directory(model) as fresh:
        assert fresh.parent == model.parent
        assert not list(fresh.iterdir())
        fill(fresh, "new")
        assert contents(model) == whole("old")
    assert contents(model) == whole("new")
    assert os.listdir(model.parent) == ["model"]


def test_makes_a_new_one_and_its_parents(tmp_path):
    target = tmp_path / "runs" / "tiny" / "model"
    with replacing_directory(target) as fresh:
        fill(fresh, "new")
    assert contents(target) == whole("new")
    assert os.listdir(target.parent) == ["model"]


def test_follows_a_link(model, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(model)
    with replacing_directory(link) as fresh:
        fill(fresh, "new")
    assert link.is_symlink()
    assert contents(model) == whole("new")


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), FileNotFoundError("tokenizer.json")])
def test_an_error_leaves_the_old_one(model, error):
    with pytest.raises(type(error)) as caught, replacing_directory(model) as fresh:
        write_half(fresh, error)
    assert caught.value is error
    assert contents(model) == whole("old")
    assert os.listdir(model.parent) == ["model"]


def test_a_full_disk_leaves_the_old_one_and_says_so(model):
    with (
        pytest.raises(OSError, match=f"{model}.*No space left") as caught,
        replacing_directory(model) as fresh,
    ):
        write_half(fresh, OSError(errno.ENOSPC, "No space left on device", "model.safetensors"))
    assert caught.value.errno == errno.ENOSPC
    assert contents(model) == whole("old")
    assert os.listdir(model.parent) == ["model"]


def test_a_disk_that_fills_up_at_the_flush(model, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=str(model)), replacing_directory(model) as fresh:
        fill(fresh, "new")
    assert contents(model) == whole("old")
    assert os.listdir(model.parent) == ["model"]


def test_a_swap_that_fails_halfway_puts_the_old_one_back(model, monkeypatch):
    """Without an exchange, if the second of the two renames fails, the first is undone."""
    rename = os.rename

    def failing(source, target):
        if str(source).endswith(".new"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output error"), replacing_directory(model) as fresh:
        fill(fresh, "new")
    assert contents(model) == whole("old")
    assert os.listdir(model.parent) == ["model"]


def test_refuses_what_is_no_model(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=str(tmp_path / "file")), replacing_directory(tmp_path / "file"):
        pass
    with pytest.raises(ValueError, match=r"config\.json.*align\.json.*tokenizer\.json"), replacing_directory(tmp_path):
        pass
    assert contents(tmp_path) == {"file": "x"}


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_dead_processes_go_those_of_living_ones_stay(model):
    living = model.with_name(f".model.{os.getppid()}.new")
    for leftover in (model.with_name(f".model.{dead_pid()}.new"), model.with_name(f".model.{os.getpid()}.new"), living):
        leftover.mkdir()
        (leftover / "a").write_text("half")
    with replacing_directory(model) as fresh:
        fill(fresh, "new")
    assert contents(model) == whole("new")
    assert sorted(os.listdir(model.parent)) == [living.name, "model"]


def half_swap(model):
    pid = dead_pid()
    model.rename(model.with_name(f".model.{pid}.old"))
    return model.with_name(f".model.{pid}.new")


def test_recover_finishes_a_half_done_swap(model):
    """A kill between the two renames: recovery moves the new directory into place."""
    new = half_swap(model)
    new.mkdir()
    fill(new, "new")
    assert locate(model) == model
    assert contents(model) == whole("new")
    with replacing_directory(model) as fresh:
        fill(fresh, "newer")
    assert os.listdir(model.parent) == ["model"]


def test_recover_puts_the_old_one_back(model):
    half_swap(model)
    recover(model)
    assert contents(model) == whole("old")


def test_looking_for_a_model_leaves_one_in_the_making_alone(tmp_path):
    target = tmp_path / "model"
    with replacing_directory(target) as fresh:
        fill(fresh, "new")
        with pytest.raises(FileNotFoundError, match=str(target)):
            locate(target)
    assert contents(target) == whole("new")


KILLED = """
import os, signal, sys
from align.io import atomic

if sys.argv[2] == "renames":
    atomic._exchange = lambda first, second: False
left = int(sys.argv[3])
watched = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"}

def count(event, arguments):
    global left
    if event in watched:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
with atomic.replacing_directory(sys.argv[1]) as fresh:
    for name in ("config.json", "a", "b"):
        with open(fresh / name, "w") as file:
            file.write("ne")
            file.flush()
            file.write("w")
left = -1
"""


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_a_kill_at_any_step_leaves_one_of_them_whole(model, way):
    """SIGKILL at the 1st, 2nd, ... file operation, until the process survives."""
    seen = []
    for step in range(1, 60):
        with replacing_directory(model) as fresh:
            assert contents(model) in (whole("old"), whole("new"))
            fill(fresh, "old")
        assert os.listdir(model.parent) == ["model"]
        done = subprocess.run([sys.executable, "-c", KILLED, model, way, str(step)])
        if way == "exchange":
            assert contents(model) in (whole("old"), whole("new"))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        seen.append(contents(model)["a"] if model.exists() else "half")
    assert contents(model) == whole("new")
    assert seen == sorted(seen, key=["old", "half", "new"].index)
    assert ("half" in seen) == (way == "renames")
    assert seen.count("old") >= 10
    assert seen.count("new") >= 4


def test_on_windows(model, monkeypatch):
    """It flushes nothing that is open for reading, exchanges no names, and takes signal 0 for Ctrl-C."""

    def refuse(*_):
        raise PermissionError("Windows")

    other = model.with_name(".model.4711.new")
    other.mkdir()
    for name in ("fsync", "kill"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    monkeypatch.setattr(sys, "platform", "win32")
    with replacing_directory(model) as fresh:
        fill(fresh, "new")
    assert contents(model) == whole("new")
    assert other.exists(), "nobody knows whether its process still writes"


@pytest.mark.parametrize(("binary", "content"), [(False, "ü\n"), (True, b"\x00\xff")], ids=["text", "binary"])
def test_a_file_is_replaced_whole(tmp_path, binary, content):
    path = tmp_path / "folder" / "file"
    with replacing_file(path, binary=binary) as file:
        file.write(content)
        assert not path.exists()
    assert path.read_bytes() == (content if binary else content.encode())
    with pytest.raises(KeyError), replacing_file(path, binary=binary) as file:
        write_then_fail(file, content)
    assert path.read_bytes() == (content if binary else content.encode())
    assert os.listdir(path.parent) == ["file"]


def test_the_first_of_two_writers_creates_a_directory(tmp_path):
    path = tmp_path / "cache"
    with creating_directory(path) as slower:
        with creating_directory(path) as faster:
            (faster / "a").write_text("faster")
            assert not path.exists()
        (slower / "a").write_text("slower")
    assert contents(path) == {"a": "faster"}
    assert os.listdir(tmp_path) == ["cache"]


def test_a_directory_that_fails_is_not_created(tmp_path):
    with pytest.raises(KeyError), creating_directory(tmp_path / "cache") as new:
        write_half(new, KeyError())
    assert not os.listdir(tmp_path)
