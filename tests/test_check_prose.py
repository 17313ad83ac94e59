import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_prose", ROOT / "tools/check_prose.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prose = _load()

CORRECT = """
The run resumes where it stopped. Training continues with the next batch. What is going on here is explained below.
Go on to the next page. The scheduler preempted the run, which saved a checkpoint and exited.
Dealing with long prompts: they are truncated. That case is dealt with in the sampler. A good deal of memory is saved.
It takes up 4 GB of memory; most memory taken up by activations is freed. The memory is cut in half, or cut down.
Long rows are cut off. Classes cannot be told apart. The company publishes its weights. A piece of text is a string.
Who trained this model? The user who asks for a report gets one. What does a step do?
The answer is yes: both networks agree. It answers within a second. Two ranks, one per device, once per run.
Each rank takes a strided slice. Weights are sharded over all devices. Results are bitwise identical.
A bit is 0 or 1; quantize to the 4-bit format. The first stands for the second. Tokens a second, once a day.
Position 3 of the sequence; in the first place. Responses ended with a stop token. We amended the table.
The mask is True at tokens that count. See the place where it is defined. He has years of experience. As many as fit.
Weights go on the GPU. The logits lie between 0 and 1. Otherwise the default is used. Three answers follow.
"""


def _write(tmp_path: Path, name: str, text: str) -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


@pytest.mark.parametrize("phrase", prose.PHRASES, ids=lambda phrase: phrase.example)
def test_each_phrase_is_found_in_its_example(phrase, tmp_path: Path):
    found = prose.findings(_write(tmp_path, "a.md", phrase.example))
    assert phrase.use in {finding.use for finding in found}


@pytest.mark.parametrize("sentence", CORRECT.strip().splitlines())
def test_correct_english_is_not_found(sentence: str, tmp_path: Path):
    assert prose.findings(_write(tmp_path, "a.md", sentence)) == []


def test_what_to_write_instead_is_not_found(tmp_path: Path):
    text = "\n\n".join(phrase.use for phrase in prose.PHRASES)
    assert [finding.found for finding in prose.findings(_write(tmp_path, "a.md", text))] == []


def test_python_comments_docstrings_and_strings_are_read(tmp_path: Path):
    source = (
        '"""A run that goes on\nfrom there."""\n'  # line 1, across a line break
        "x = 1  # starts anew\n"
        "# it was asked to\n"
        "# leave\n"
        "raise ValueError(\n"
        '    f"{x} is whole "\n'
        '    "or not at all"\n'
        ")\n"
    )
    found = prose.findings(_write(tmp_path, "a.py", source))
    assert [(finding.line, finding.found) for finding in found] == [
        (1, "goes on"),
        (3, "anew"),
        (4, "asked to leave"),
        (7, "whole or not at all"),
    ]


def test_code_is_not_read(tmp_path: Path):
    source = 'footprint = {"yardstick": 1}\nname = f"{yardstick} of ``footprint`` and `anew`"\n'
    assert prose.findings(_write(tmp_path, "a.py", source)) == []
    assert prose.findings(_write(tmp_path, "a.md", "```\nanew\n```\n\nSet `the probe` first.\n")) == []
    assert prose.findings(_write(tmp_path, "a.yaml", "probe: anew\n")) == []


def test_yaml_comments_are_read(tmp_path: Path):
    found = prose.findings(_write(tmp_path, "a.yaml", "# weights spread\n# over devices\nx: 1  # begins anew\n"))
    assert [finding.line for finding in found] == [1, 3]


def test_exit_codes_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad, good = _write(tmp_path, "bad.md", "\n\nIt starts anew."), _write(tmp_path, "good.md", "It restarts.")
    assert prose.main([str(good)]) == 0
    assert prose.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{bad}:3 anew -> again, from scratch\n"
    assert prose.main([str(tmp_path / "missing")]) == 2


def test_clean_paths_exist():
    assert [name for name in prose.CHECKED if not (ROOT / name).exists()] == []
