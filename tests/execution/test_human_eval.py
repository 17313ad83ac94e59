"""HumanEval's own solutions pass, and wrong ones fail."""

import json
from pathlib import Path

import pytest

from align.execution import Limits, run_program

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "humaneval.jsonl"


def programs(solution: str | None, problem: dict[str, str]) -> str:
    body = problem["canonical_solution"] if solution is None else solution
    return f"{problem['prompt']}{body}\n{problem['test']}\ncheck({problem['entry_point']})\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not FILE.is_file(), reason="needs ../shared/data/humaneval.jsonl")
def test_solutions_pass_and_planted_mistakes_fail() -> None:
    problems = [json.loads(line) for line in FILE.read_text().splitlines()]
    limits = Limits(wall_seconds=60.0, cpu_seconds=30)
    outcomes = {problem["task_id"]: run_program(programs(None, problem), limits) for problem in problems}
    assert [(name, outcome.reason) for name, outcome in outcomes.items() if not outcome.passed] == []
    wrong = {problem["task_id"]: run_program(programs("    return None\n", problem), limits) for problem in problems}
    assert [name for name, outcome in wrong.items() if outcome.passed] == []
    assert len(problems) == 164
