"""examples/record_format.py: a format from the user's own file, through the real command line."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from align.cli import main
from align.tokenizer import Tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
RECIPE = """
seed_everything: 0
trainer: {default_root_dir: run, accelerator: cpu, max_steps: 2, enable_progress_bar: false, val_check_interval: 1.0}
model:
  class_path: align.algorithms.Pretrain
  init_args:
    gpt: {layers: 1, heads: 2, kv_heads: 2, width: 16, context: 64}
data:
  class_path: align.data.ChatData
  init_args:
    tokenizer: tokenizer
    train: quiz.jsonl
    context: 64
    batch_size: 2
    cache_dir: cache
    format: {class_path: record_format.MultipleChoice, init_args: {letters: "1234"}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory with the example in it, which only the working directory makes importable."""
    shutil.copy(ROOT / "examples/record_format.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    train_tokenizer(["ab ab"], vocab_size=256 + 7).save(tmp_path / "tokenizer")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    yield tmp_path
    sys.modules.pop("record_format", None)


def write(folder, *records):
    (folder / "quiz.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_it_trains_from_the_working_directory(folder, capsys):
    """The corpus holds what the format made of the record, and the run names the format."""
    write(folder, *[{"question": "2+2?", "choices": ["3", "4"], "answer": 1}] * 4)
    assert main(["fit", "--config=recipe.yaml"]) == 0, capsys.readouterr().err
    (ids,) = (folder / "cache").glob("ChatData-*/ids.bin")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    shown = tokenizer.decode(np.fromfile(ids, np.uint16).tolist(), skip_special=False)
    assert shown == 4 * "<|bos|><|user|>2+2?\n1. 3\n2. 4<|end|><|assistant|>2. 4<|end|>"
    saved = yaml.safe_load((folder / "run/config.yaml").read_text())["data"]["init_args"]["format"]
    assert saved == {"class_path": "record_format.MultipleChoice", "init_args": {"letters": "1234"}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"answer": 2}, "answer"),
        ({"answer": 1.0}, "answer"),
        ({"answer": None}, "answer"),
        ({"choices": []}, "choices"),
        ({"choices": "34"}, "choices"),
        ({"question": 4}, "question"),
    ],
)
def test_its_errors_name_file_line_and_field(folder, capsys, change, field):
    write(folder, {"question": "2+2?", "choices": ["3", "4"], "answer": 1} | change)
    assert main(["fit", "--config=recipe.yaml"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "quiz.jsonl: line 1: " in error
    assert repr(field) in error
