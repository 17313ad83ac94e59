"""``align data clean`` on files whose dirt is known."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cleaning_data import EMAIL, KEY, PHONE, RECIPE, plant

from align.cli import main
from align.curate.personal import PATTERNS


def _records(folder: Path) -> list[dict]:
    return [
        json.loads(line)
        for path in sorted(folder.rglob("*.jsonl.gz"))
        for line in gzip.decompress(path.read_bytes()).decode().splitlines()
    ]


def _files(folder: Path) -> dict[str, bytes]:
    """Content of each file; gzip's header has the time."""
    return {
        path.relative_to(folder).as_posix(): gzip.decompress(path.read_bytes())
        for path in sorted(folder.rglob("*.jsonl.gz"))
    }


def _recipe(folder: Path, **changes: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes, sort_keys=False))
    return str(path)


def _step(name: str, **settings: object) -> dict:
    return {"class_path": f"align.curate.cleaning.{name}", "init_args": settings}


def _words(folder: Path, out: str) -> list[str]:
    return ["data", "clean", "--config", _recipe(folder), "--inputs", str(folder / "raw"), "--out", str(folder / out)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("clean")
    planted = plant(folder / "raw")
    words = [
        "data",
        "clean",
        "--config",
        _recipe(folder),
        "--inputs",
        str(folder / "raw"),
        "--out",
        str(folder / "out"),
    ]
    assert main(words) == 0
    return folder, planted, words


def test_each_step_removes_what_was_planted_and_nothing_else(done):
    folder, planted, _ = done
    removed = {step: {record["id"] for record in _records(folder / "out/removed" / step)} for step in planted}
    assert removed["prose-Language"] == planted["prose-Language"]
    assert removed["code-CodeQuality"] == planted["code-CodeQuality"]
    assert len(removed["ExactDuplicates"]) == 2
    assert removed["ExactDuplicates"] < planted["ExactDuplicates"]
    assert len(removed["NearDuplicates"]) == 2
    assert {identity.strip("anerx.t0") for identity in removed["NearDuplicates"]} == {"1", "2"}
    assert removed["Decontaminate"] == planted["Decontaminate"]


def test_the_corpus_is_what_is_left_and_masked(done):
    folder, _, _ = done
    kept = _records(folder / "out/corpus")
    assert len(kept) == 30 + 1 + 1  # texts, the one with personal data, the code
    assert {record["metadata"]["source"] for record in kept} == {"prose", "code"}
    person = next(record for record in kept if record["id"] == "person.txt")
    assert not any(word in person["text"] for word in (EMAIL, PHONE, KEY))
    assert person["metadata"]["masked"] == {"email addresses": 1, "phone numbers": 1, "keys and tokens": 1}
    assert not [found for record in kept for pattern in PATTERNS for found in pattern.matches(record["text"])]


def test_the_report_adds_up(done):
    folder, planted, _ = done
    report = json.loads((folder / "out/report.json").read_text())
    steps = {step["step"]: step for step in report["steps"]}
    read = 30 + 2 + 2 + 3 + 2  # latin.txt is no UTF-8, notes.csv has another suffix
    assert report["read"]["documents"] == read
    assert report["kept"]["documents"] == 32
    gone = {
        name: step["before"]["documents"] - step["after"]["documents"] for name, step in steps.items() if step["before"]
    }
    assert gone == {
        "prose-Language": 1, "code-CodeQuality": 1, "ExactDuplicates": 2, "NearDuplicates": 2, "Decontaminate": 1,
        "MaskPersonalData": 0,
    }  # fmt: skip
    kept = _records(folder / "out/corpus")
    assert report["kept"]["bytes"] == sum(len(record["text"].encode()) for record in kept)
    for split in ("train", "val"):
        found = _records(folder / "out/corpus" / split)
        assert report["splits"][split]["documents"] == len(found) > 0
    assert steps["prose-Language"]["reasons"] == {"fr": 1}
    assert steps["code-CodeQuality"]["reasons"] == {"long_line": 1}
    assert steps["prose-read"]["reasons"] == {"not_utf8": 1}
    assert steps["Decontaminate"]["samples"][0]["id"] == "leak.txt"
    assert "a baker sold forty loaves" in steps["Decontaminate"]["samples"][0]["text"]
    assert steps["MaskPersonalData"]["reasons"] == {"email addresses": 1, "phone numbers": 1, "keys and tokens": 1}
    for name in ("report.md", "report.html"):
        page = (folder / "out" / name).read_text()
        assert all(step in page for step in planted)


def test_what_is_complete_is_not_done_again(done, capsys):
    folder, _, words = done
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.name != ".lock"}
    assert main([*words, "--json"]) == 0
    after = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.name != ".lock"}
    assert {path: time for path, time in after.items() if path.is_file()} == {
        path: time for path, time in before.items() if path.is_file()
    }
    assert json.loads(capsys.readouterr().out)["kept"]["documents"] == 32


def test_other_settings_or_files_need_another_folder(done, capsys):
    folder, _, words = done
    assert main([*words, "--validation", "0.5"]) == 1
    assert "validation" in capsys.readouterr().err
    added = folder / "raw/code/more.py"
    added.write_text("x = 1\n")
    try:
        assert main(words) == 1
        assert "code.more.py" in capsys.readouterr().err
    finally:
        added.unlink()
    assert main(words) == 0


@pytest.mark.slow
def test_two_workers_make_the_same_corpus(done):
    folder, _, words = done
    other = [*words[:-1], str(folder / "two"), "--executor.workers", "2"]
    assert main(other) == 0
    assert _files(folder / "two/corpus") == _files(folder / "out/corpus")
    assert _files(folder / "two/removed") == _files(folder / "out/removed")


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_makes_the_same_corpus(done):
    folder, _, words = done
    command = [sys.executable, "-m", "align", *words[:-1], str(folder / "killed"), "--executor.workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list((folder / "killed/logs").glob("*/completions/*"))) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "killed/corpus").exists()
    if sys.platform == "linux":  # no worker outlives it
        while _alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _alive(process.pid)
    assert main([*words[:-1], str(folder / "killed")]) == 0
    assert _files(folder / "killed/corpus") == _files(folder / "out/corpus")
    assert _files(folder / "killed/removed") == _files(folder / "out/removed")


def _alive(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("changes", "code", "part"),
    [
        ({"sources": {}}, 2, "sources"),
        ({"validation": 1.0}, 2, "validation"),
        ({"tasks": 0}, 2, "tasks"),
        ({"sources": {"a/b": RECIPE["sources"]["code"]}}, 2, "a/b"),
        ({"steps": [_step("NoSuchStep")]}, 2, "NoSuchStep"),
        ({"steps": [_step("NearDuplicates", n_grams=0)]}, 2, "n_grams"),
        ({"steps": [_step("MaskPersonalData", kinds=["x"])]}, 2, "kinds"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused(tmp_path, capsys, changes, code, part):
    plant(tmp_path / "raw", documents=3)
    recipe = _recipe(tmp_path, **changes)
    assert (
        main(["data", "clean", "--config", recipe, "--inputs", str(tmp_path / "raw"), "--out", str(tmp_path / "o")])
        == code
    )
    captured = capsys.readouterr().err
    assert part in captured
    assert "Traceback" not in captured


def test_missing_files_are_named(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    words = _words(tmp_path, "o")
    assert main(words) == 1
    assert "sources.prose.reader" in capsys.readouterr().err
    (tmp_path / "raw/prose").mkdir()
    assert main(words) == 1
    assert ".txt" in capsys.readouterr().err


def test_the_output_is_not_among_the_inputs(tmp_path, capsys):
    plant(tmp_path / "raw", documents=3)
    out = str(tmp_path / "raw/prose/out")
    assert main(["data", "clean", "--config", _recipe(tmp_path), "--inputs", str(tmp_path / "raw"), "--out", out]) == 1
    assert "sources.prose.reader" in capsys.readouterr().err


def test_a_missing_evaluation_set_stops_the_run(tmp_path, capsys):
    plant(tmp_path / "raw", documents=3)
    (tmp_path / "raw/loaves.jsonl").unlink()
    words = _words(tmp_path, "o")
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "loaves.jsonl" in error
    assert "Traceback" not in error
    assert not (tmp_path / "o/recipe.json").exists()


def test_a_changed_evaluation_set_needs_another_folder(done, capsys):
    folder, _, words = done
    file = folder / "raw/loaves.jsonl"
    before = file.read_text()
    file.write_text(before + json.dumps({"question": "Another one?"}) + "\n")
    try:
        assert main(words) == 1
        assert "loaves.jsonl" in capsys.readouterr().err
    finally:
        file.write_text(before)
