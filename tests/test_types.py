"""mypy sees the types behind the names that are imported on first use."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WRONG = """
import align
from align.model import GPT, GPTConfig, ScalarGPT

GPT(GPTConfig()).absent
ScalarGPT(GPTConfig()).absent
GPT(GPTConfig()).hidden(1, 2, 3)
align.DPO.absent
align.TextData.absent
align.Tokenizer.absent
align.load_network(1.0)
"""


@pytest.mark.slow
def test_wrong_attributes_and_arguments_are_reported(tmp_path: Path):
    """One error for each of the seven lines."""
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = {int(line.split(":")[1]) for line in found.stdout.splitlines() if line.startswith(str(file))}
    assert lines == {5, 6, 7, 8, 9, 10, 11}, found.stdout
