import os
import subprocess
import sys
import time

import pytest
from naming import error_line

from align import __version__
from align.cli import main


def test_help_lists_the_verbs_quickly():
    begun = time.perf_counter()
    result = subprocess.run([sys.executable, "-m", "align", "--help"], capture_output=True, text=True, check=True)
    assert "tokenizer" in result.stdout
    assert time.perf_counter() - begun < 10, "about a second on a quiet machine"


@pytest.mark.parametrize("words", ["--help", "recipes", "generate --help", "recipes --json"])
def test_a_reader_that_leaves_is_no_error(words: str):
    """As with ``align --help | head -1``: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        command = [sys.executable, "-m", "align", *words.split()]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 0
    assert "Error" not in result.stderr
    assert "Traceback" not in result.stderr


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_an_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["fti"]) == 2
    error_line(capsys, "fti", "fit")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], tmp_path):
    assert main(["sandbox", "--out", str(tmp_path), "--slip-rate", "2"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["sandbox", "--out", str(tmp_path), "--slip-rate", "2", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_both_spellings_of_a_setting(capsys: pytest.CaptureFixture[str]):
    assert main(["sandbox", "--slp-rate", "1"]) == 2
    error_line(capsys, "--slp_rate", "slip_rate")


def test_a_task_of_the_sandbox_by_its_word(capsys: pytest.CaptureFixture[str], tmp_path):
    words = ["--out", str(tmp_path), "--prompts", "3", "--prompts_val", "2", "--prompts_test", "1"]
    assert main(["sandbox", "constraints", *words]) == 0
    assert "prompts_heldout_kinds.jsonl: 300 records" in capsys.readouterr().out
    assert len((tmp_path / "prompts_train.jsonl").read_text().splitlines()) == 3
    assert main(["sandbox", "constraints", *words, "--two-constraints-rate", "2"]) == 2
    error_line(capsys, "two_constraints_rate", "2.0")
    assert main(["sandbox", "stories", *words]) == 2
