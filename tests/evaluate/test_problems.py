"""Records of HumanEval and MBPP: prompts and programs by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from align.cli import main
from align.cli.text_files import read_problems
from align.data.readers import BadRecordError
from align.evaluate.problems import MBPP, HumanEval, problems_of
from align.evaluate.programs import Programs
from align.evaluate.task import Subject
from align.execution import Limits, run_program

FULL = {
    "text": "Write a function to double a number.",
    "code": "def twice(x):\r\n    return 2 * x\r\n",
    "task_id": 11,
    "test_setup_code": "import math\r\nTWO = 2",
    "test_list": ["assert twice(2) == 4", "assert twice(TWO) == math.isqrt(16)", "assert twice(-1) == -2"],
    "challenge_test_list": ["assert twice(10**100) == 2 * 10**100"],
}
SANITIZED = {
    "source_file": "a.ipynb",
    "task_id": 12,
    "prompt": "Write a function to halve a number.",
    "code": "def half(x):\n    return x / 2",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(half(3), 1.5)"],
}
TWICE = "def twice(x):\n    return 2 * x"
ASKED = (
    "You are an expert Python programmer, and here is your task: Write a function to double a number. Your code should "
    "pass these tests:\n\nassert twice(2) == 4\nassert twice(TWO) == math.isqrt(16)\nassert twice(-1) == -2"
)


def published() -> list[dict]:
    """Ids 1 to 600, as in the full set; only the test split is evaluated."""
    return [FULL | {"task_id": number, "text": f"Task {number}."} for number in range(1, 601)]


def test_programs_of_the_full_set():
    """Setup, the program, then the tests; what is continued ends at [DONE], a response is its fenced block."""
    problem = MBPP.of(FULL)
    assert problem.request == ASKED
    assert problem.prompt == f"{ASKED}\n[BEGIN]\n"
    expected = "\n".join(["import math\nTWO = 2", TWICE, *FULL["test_list"], ""])
    assert problem.program(f"{TWICE}[DONE]\n\nmore", chat=False) == expected
    assert problem.program(f"```python\n{TWICE}\n```\n[DONE]", chat=False) == expected
    assert problem.program(f"Here:\n```python\n{TWICE}\n```\nIt doubles.", chat=True) == expected


def test_programs_of_the_sanitized_set():
    problem = MBPP.of(SANITIZED)
    assert "halve a number. Your code should pass" in problem.request
    assert problem.program("def half(x): return x / 2", chat=True) == (
        "import math\ndef half(x): return x / 2\nassert math.isclose(half(3), 1.5)\n"
    )


def test_three_solved_problems_stand_before_those_of_the_test_split():
    problems = problems_of(published())
    assert [problem.task_id for problem in problems] == [str(number) for number in range(11, 511)]
    parts = problems[0].prompt.split("[BEGIN]\n")
    assert len(parts) == 5
    assert parts[-1] == ""
    assert parts[0] == ASKED.replace(FULL["text"], "Task 2.") + "\n"
    assert parts[1].startswith(
        f"{TWICE}\n[DONE]\n\nYou are an expert Python programmer, and here is your task: Task 3."
    )
    assert "Task 11." in parts[3]
    assert "Task 2." not in problems[0].request
    assert [problem.prompt.count("[BEGIN]") for problem in problems_of(published()[10:12])] == [1, 1]


@pytest.mark.skipif("__import__('sys').platform != 'linux'")
def test_solutions_pass_and_other_programs_fail():
    limits = Limits(wall_seconds=60.0)
    for record, wrong in ((FULL, "def twice(x): return x * x"), (SANITIZED, "def half(x): return x // 2")):
        problem = MBPP.of(record)
        assert run_program(problem.program(record["code"], chat=False), limits).passed
        assert run_program(problem.program(wrong, chat=False), limits).reason == "AssertionError"


def test_records_of_both_sets_are_told_apart(tmp_path: Path):
    human = {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass"}
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (human, FULL, SANITIZED)))
    kinds = [type(problem) for problem in read_problems(str(tmp_path / "mixed.jsonl"))]
    assert kinds == [HumanEval, MBPP, MBPP]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"test_list": "assert"}, "'test_list'"),
        ({"test_list": [1]}, "'test_list'"),
        ({"text": None}, "'text'"),
        ({"test_imports": "x"}, "'test_imports'"),
    ],
)
def test_a_record_of_another_form_is_named_by_file_and_line(tmp_path: Path, changed: dict, named: str):
    file = tmp_path / "mbpp.jsonl"
    file.write_text(json.dumps(SANITIZED) + "\n" + json.dumps(FULL | changed) + "\n")
    with pytest.raises(BadRecordError, match=rf"mbpp\.jsonl: line 2: field {named}"):
        read_problems(str(file))


def test_a_model_that_continues_text_writes_programs(model: Path, tmp_path: Path, monkeypatch):
    """What is sampled stops where a program ends, and is run with its tests."""
    given = {}

    def sampled(subject, prompts, **settings):
        given.update(settings, prompts=prompts)
        return [[(f"{TWICE}\n[DONE]", True), ("def twice(x): return x", True)]]

    monkeypatch.setattr("align.evaluate.programs.sampled_texts", sampled)
    monkeypatch.setattr(Subject, "is_chat", False)
    task = Programs([MBPP.of(FULL)], n=2, limits=Limits(wall_seconds=60.0))
    found = task.run(Subject(model, "cpu", 0, 3, tmp_path), limit=None)
    assert (given["prompts"], given["stops"], given["raw"]) == ([f"{ASKED}\n[BEGIN]\n"], ("[DONE]",), True)
    assert found.items[0]["passed"] == [True, False]
    assert found.measures[0].values == pytest.approx(np.array([0.5]))


def test_programs_of_a_file_through_the_command(model: Path, tmp_path: Path, monkeypatch):
    human = {"task_id": "a", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass"}
    (tmp_path / "human.jsonl").write_text(json.dumps(human) + "\n")
    monkeypatch.setattr(Subject, "is_chat", False)
    args = ["--programs", str(tmp_path / "human.jsonl"), "--allow_code_execution", "--max_new_tokens", "4"]
    assert main(["eval", f"model={model}", *args, "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out/model/results.json").read_text())
    assert results["results"]["Programs"]["pass@1,none"] in (0, 1)
