"""Every command of the guide, run where `make demo` was, in the order of the chapters.

Training is cut to two steps into a folder of its own: the demo trains the same recipes to their end. What needs the Hub
is read and not run.
"""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs/guide"
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<lines>.*?)^```$", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    """A command line of a chapter."""

    chapter: str
    words: list[str]


def _commands() -> list[Command]:
    pages = {page.stem: page.read_text() for page in sorted(GUIDE.glob("*.md"))}
    return [
        Command(name, shlex.split(line, comments=True))
        for name, text in pages.items()
        for block in BLOCK.finditer(text)
        if not block["language"]
        for line in block["lines"].replace("\\\n", " ").splitlines()
        if line.startswith("align ")
    ]


COMMANDS = _commands()


def test_the_guide_has_commands():
    assert len(COMMANDS) >= 18
    assert len({command.chapter for command in COMMANDS}) >= 12


def _serve(words: list[str], folder: Path) -> None:
    """Until it answers; it ends when it is told to."""
    command = [sys.executable, "-m", "align", *words, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http"), process.stderr.read()
        with urlopen(f"{url}/models", timeout=60) as reply:
            assert reply.status == 200
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda number: COMMANDS[number].chapter)
def test_a_command_of_the_guide_runs(number: int, demo: Path, tmp_path: Path):
    chapter, (_, verb, *rest) = COMMANDS[number]
    if verb == "eval":  # of a model and data on the Hub
        from align.cli.evaluate import EvalSettings
        from align.cli.settings import parse_settings

        assert parse_settings(EvalSettings, "eval", rest).tasks
        return
    (demo / "book.txt").write_text("\n".join(page.read_text() for page in sorted(GUIDE.glob("*.md"))))
    (demo / "sft.yaml").write_text((demo / "recipes/tiny/sft.yaml").read_text())
    if verb == "serve":
        _serve([verb, *rest], demo)
        return
    if verb == "fit":
        rest += ["--trainer.max_steps", "2", "--trainer.default_root_dir", str(tmp_path / "run")]
    words = [sys.executable, "-m", "align", verb, *rest]
    done = subprocess.run(words, cwd=demo, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, f"{chapter}: {shlex.join(words)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
