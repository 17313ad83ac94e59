"""Checkpoint files: names, rotation, every kind of damage, and the fallback."""

import itertools
import os
import re
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint
from naming import names, naming

from align.training.checkpoint_files import (
    BackgroundIO,
    damage,
    find_whole,
    global_step,
    publish,
    remove_leftovers,
    temporary,
)


def save(folder: Path, step: int, *, also: tuple[str, ...] = (), keep_last: int = 2) -> None:
    folder.mkdir(exist_ok=True)
    new = temporary(folder)
    torch.save({"global_step": step, "weight": torch.full((64,), float(step))}, new)
    publish(new, last=folder / "last.ckpt", keep_last=keep_last, also=[folder / name for name in also])


def steps(folder: Path) -> dict[str, int | None]:
    return {path.name: global_step(path) for path in sorted(folder.iterdir())}


def test_the_newest_generations_stay(tmp_path: Path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep_last=3)
    assert steps(tmp_path) == {"last-1.ckpt": 3, "last-2.ckpt": 2, "last.ckpt": 4}


def test_other_names_stay_for_good(tmp_path: Path):
    for step in (1, 2, 3):
        save(tmp_path, step, also=("step=2.ckpt",) if step == 2 else (), keep_last=1)
    assert steps(tmp_path) == {"last.ckpt": 3, "step=2.ckpt": 2}


def test_a_file_system_without_hard_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    save(tmp_path, 5, also=("step=5.ckpt",))
    assert steps(tmp_path) == {"last.ckpt": 5, "step=5.ckpt": 5}


@pytest.mark.parametrize("call", range(8))
def test_killed_at_any_call_there_is_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int):
    """The process ends at the n-th rename: last.ckpt is step 2 or 3, and the next save succeeds."""
    for step in (1, 2):
        save(tmp_path, step)
    left = [call]

    def count(function):
        def counted(*args, **kwargs):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return function(*args, **kwargs)

        return counted

    for owner, name in ((Path, "replace"), (os, "link"), (os, "fsync")):
        monkeypatch.setattr(owner, name, count(getattr(owner, name)))
    try:
        save(tmp_path, 3, also=("step=3.ckpt",))
        over = True
    except KeyboardInterrupt:
        over = False
    monkeypatch.undo()
    assert over == (call == 7)
    found = find_whole(tmp_path, pytest.fail)
    assert found == tmp_path / "last.ckpt"
    assert global_step(found) in (2, 3)
    assert not [path for path in tmp_path.glob("*.ckpt") if path.name.startswith(".")]
    remove_leftovers(tmp_path)
    save(tmp_path, 4)
    assert steps(tmp_path)["last.ckpt"] == 4
    assert not list(tmp_path.glob(".*"))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """One bit of a weight: 2.0 is 40000000, so its bytes are found by their repetition."""
    place = content.index(b"\x00\x00\x00\x40" * 8)
    return content[: place + 3] + b"\x41" + content[place + 4 :]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda content: b"", []),
        (cut, ["{size:,}"]),
        (lambda content: bytes(len(content)), ["{size:,}"]),
        (lambda content: b"hello", ["{size:,}"]),
        (flip, ["data/0"]),
    ],
    ids=["empty", "cut", "zeros", "text", "one bit"],
)
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, spoil, named: list[str]):
    for step in (1, 2):
        save(tmp_path, step)
    last = tmp_path / "last.ckpt"
    last.write_bytes(spoil(last.read_bytes()))
    reason = [token.format(size=last.stat().st_size) for token in named]
    assert names(damage(last) or "", *reason)
    lines: list[str] = []
    assert find_whole(tmp_path, lines.append) == tmp_path / "last-1.ckpt"
    (line,) = lines
    assert names(line, last, *reason, "last-1.ckpt")
    (tmp_path / "last-1.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=naming(last, *reason, tmp_path / "last-1.ckpt")):
        find_whole(tmp_path, lines.append)


def test_the_last_ones_come_before_the_named_ones(tmp_path: Path):
    """By name, not by time stamp, which copying a folder changes."""
    assert find_whole(tmp_path, pytest.fail) is None
    save(tmp_path, 3, also=("step=3.ckpt",), keep_last=1)
    save(tmp_path, 10, also=("step=10.ckpt",))
    save(tmp_path, 12)
    os.utime(tmp_path / "step=3.ckpt", (2e9, 2e9))
    for expected in ("last.ckpt", "last-1.ckpt", "step=10.ckpt", "step=3.ckpt"):
        assert find_whole(tmp_path, pytest.fail) == tmp_path / expected
        (tmp_path / expected).unlink()


def test_what_is_of_another_try_goes(tmp_path: Path):
    """Steps 4, 5, 6 of an earlier attempt; an attempt resumed from 4 saves 5, so 4 is the previous one."""
    for step in (4, 5, 6):
        save(tmp_path, step, keep_last=3)
    new = temporary(tmp_path)
    torch.save({"global_step": 5}, new)
    publish(new, last=tmp_path / "last.ckpt", keep_last=3, stale=lambda path: (global_step(path) or 5) >= 5)
    assert steps(tmp_path) == {"last-2.ckpt": 4, "last.ckpt": 5}


def write_shards(folder: Path, step: int) -> Path:
    """As Lightning's ModelParallelStrategy writes them, in one process."""
    new = temporary(folder)
    state = {"state_dict": {"a": torch.full((64,), 2.0), "b": torch.zeros(3)}, "optimizer_0": {"lr": 0.5}}
    torch.distributed.checkpoint.save(state, checkpoint_id=new, no_dist=True)
    torch.save({"global_step": step}, new / "meta.pt")
    return new


def save_shards(folder: Path, step: int) -> None:
    new = write_shards(folder, step)
    publish(new, last=folder / "last.ckpt", keep_last=2, also=[folder / f"step={step}.ckpt"])


def killed_at(call: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> bool:
    """Whether ``work`` was ended at its n-th file operation; a removal ends after its first file."""
    left = [call]

    def count(function, half):
        def counted(*args, **kwargs):
            if not left[0]:
                half(*args)
                raise KeyboardInterrupt
            left[0] -= 1
            return function(*args, **kwargs)

        return counted

    def remove_one(folder, *_):
        sorted(Path(folder).iterdir())[0].unlink()

    for owner, name in ((Path, "replace"), (os, "link"), (os, "fsync"), (shutil, "rmtree")):
        half = remove_one if name == "rmtree" else lambda *_: None
        monkeypatch.setattr(owner, name, count(getattr(owner, name), half))
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        monkeypatch.undo()
    return False


@pytest.mark.parametrize("step", [3, 2], ids=["a later step", "the same step"])
@pytest.mark.parametrize("keep_last", [1, 2])
def test_killed_at_any_call_there_are_whole_shards(tmp_path: Path, monkeypatch, keep_last: int, step: int):
    """The newest stays whole under one of its names, and is the one that the next attempt resumes from.

    A step is written a second time behind a validation that its first checkpoint owed: that one goes (``stale``).
    """

    def save(folder: Path, step: int, call: int) -> bool:
        new = write_shards(folder, step)

        def stale(path: Path) -> bool:
            return (global_step(path) or step) >= step

        names = partial(publish, new, last=folder / "last.ckpt", keep_last=keep_last, stale=stale)
        return killed_at(call, monkeypatch, names)

    def newest(folder: Path) -> int | None:
        found = find_whole(folder, pytest.fail)
        assert found is not None
        return global_step(found)

    for call in itertools.count():
        folder = tmp_path / str(call)
        assert not save(folder, 1, -1)
        assert not save(folder, 2, -1)
        killed = save(folder, step, call)
        found = newest(folder)
        assert found in (2, step)
        remove_leftovers(folder)
        assert newest(folder) == found
        if keep_last == 1:
            assert (folder / "last.ckpt").exists()
        assert not save(folder, 4, -1)
        expected = {"last.ckpt": 4} | ({"last-1.ckpt": found} if keep_last == 2 else {})
        assert steps(folder) == expected
        if not killed:
            break
    assert call > 5


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        (".metadata", None, ".metadata is missing"),
        (".metadata", cut, ".metadata is truncated or overwritten"),
        ("meta.pt", cut, r"it is truncated or overwritten \([\d,]+ bytes\)"),
        ("__0_0.distcp", None, "__0_0.distcp is missing"),
        ("__0_0.distcp", lambda content: b"", "__0_0.distcp is truncated or overwritten at byte 0"),
        ("__0_0.distcp", lambda content: content[:-9], r"__0_0.distcp is truncated or overwritten at byte [\d,]+"),
        ("__0_0.distcp", flip, r"the checksum of __0_0.distcp at byte [\d,]+ is wrong"),
    ],
    ids=["no index", "cut index", "cut meta.pt", "no shard", "empty shard", "cut shard", "one bit"],
)
def test_a_damaged_directory_of_shards_falls_back_to_the_one_before(tmp_path: Path, name: str, spoil, reason: str):
    for step in (1, 2):
        save_shards(tmp_path, step)
    assert steps(tmp_path) == {"last-1.ckpt": 1, "last.ckpt": 2, "step=1.ckpt": 1, "step=2.ckpt": 2}
    assert find_whole(tmp_path, pytest.fail) == tmp_path / "last.ckpt"
    file = tmp_path / "last.ckpt" / name
    content = file.read_bytes()
    file.unlink()  # step=2.ckpt shares its bytes
    if spoil is not None:
        file.write_bytes(spoil(content))
    assert re.fullmatch(reason, damage(tmp_path / "last.ckpt") or "")
    assert damage(tmp_path / "step=2.ckpt") is None
    assert find_whole(tmp_path, lambda line: None) == tmp_path / "last-1.ckpt"


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path):
    """The weight changes while the disk is blocked; the checkpoint has the earlier value."""
    writer, gate = BackgroundIO(), threading.Event()
    weight = torch.zeros(3)
    writer.later(gate.wait)  # type: ignore[arg-type]
    writer._executor, executor = writer._executor, writer._executor
    state = {"global_step": 1, "weight": weight, "tied": weight}
    finish, writer.finish = writer.finish, lambda: None  # type: ignore[method-assign]
    writer.save_checkpoint(state, tmp_path / "one.ckpt")
    weight += 1
    assert not (tmp_path / "one.ckpt").exists()
    gate.set()
    finish()
    assert executor is not None
    assert torch.load(tmp_path / "one.ckpt", weights_only=True)["weight"].tolist() == [0, 0, 0]


def test_a_full_disk_is_told_and_nothing_is_published(tmp_path: Path):
    writer = BackgroundIO()
    (tmp_path / "folder").write_text("a file where the folder should be")
    writer.save_checkpoint({"global_step": 1}, tmp_path / "folder/.new.part")
    writer.later(lambda: pytest.fail("published"))
    with pytest.raises(OSError, match="folder"):
        writer.teardown()
    writer.teardown()
