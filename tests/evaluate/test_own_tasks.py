"""Scored responses, programs against unit tests, and reward models on pairs."""

from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest

from align.cli import main
from align.evaluate.problems import HumanEval
from align.evaluate.programs import Programs, pass_at_k
from align.evaluate.scored import Scored
from align.evaluate.task import Subject
from align.execution import Limits, Outcome
from align.generation.responses import sample_responses
from align.generation.sampling_config import SamplingConfig
from align.rewards.programs import UnitTests, code_of
from align.rewards.reward import FunctionReward
from align.tokenizer import Tokenizer


def subject(model: Path, folder: Path) -> Subject:
    return Subject(model, "cpu", 0, 3, folder)


def test_scores_are_means_over_prompts_and_resume(model: Path, tmp_path: Path, monkeypatch) -> None:
    """A reward of the length of each response; the second run samples nothing."""
    reward = FunctionReward(
        "length",
        lambda prompts, responses, bonus: [len(text) + more for text, more in zip(responses, bonus, strict=True)],
    )
    prompts, columns = ["one two", "three", "four five", "one"], [{"bonus": 10.0 * i} for i in range(4)]
    task = Scored(prompts, columns, reward, n=2, sampling=SamplingConfig(max_new_tokens=6))
    found = task.run(subject(model, tmp_path), limit=3)
    assert [item["doc_id"] for item in found.items] == [0, 1, 2]
    lengths = [np.mean([len(text) for text in item["resps"]]) for item in found.items]
    expected = [length + 10.0 * i for i, length in enumerate(lengths)]
    assert found.measures[0].values == pytest.approx(expected)
    monkeypatch.setattr("align.evaluate.scored.sample_responses", lambda *_, **__: pytest.fail("all is logged"))
    assert task.run(subject(model, tmp_path), limit=3).items == found.items


def test_responses_do_not_depend_on_the_batch(model: Path, tmp_path: Path) -> None:
    reward = FunctionReward("none", lambda prompts, responses: [0.0] * len(responses))
    task = Scored(["one", "two", "three"], [{}] * 3, reward, n=2, sampling=SamplingConfig(max_new_tokens=5))
    rows = [
        [item["resps"] for item in task.run(Subject(model, "cpu", 0, size, tmp_path / str(size)), limit=None).items]
        for size in (2, 64)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 2, 1), (5, 2, 3), (5, 0, 3), (5, 5, 2), (5, 3, 5), (1, 1, 1)])
def test_pass_at_k_counts_the_choices_of_k_programs(n: int, correct: int, k: int) -> None:
    """Of all choices of k programs, the share that has a correct one."""
    passed = [True] * correct + [False] * (n - correct)
    choices = list(combinations(passed, k))
    assert len(choices) == comb(n, k)
    share = sum(any(choice) for choice in choices) / len(choices)
    assert pass_at_k(np.array([passed]), k)[0] == pytest.approx(share)


def test_pass_at_k_by_hand() -> None:
    """n = 10: 1 - C(8, 5)/C(10, 5) = 1 - 56/252 = 7/9; 3 failures can't fill 4 places; C(9, 5)/C(10, 5) = 1/2."""
    passed = np.arange(10)[None] < np.array([[0], [1], [2], [7], [10]])
    assert pass_at_k(passed, 1) == pytest.approx([0, 0.1, 0.2, 0.7, 1])
    assert pass_at_k(passed, 5) == pytest.approx([0, 1 / 2, 7 / 9, 1, 1])
    assert pass_at_k(passed, 10).tolist() == [0, 1, 1, 1, 1]
    hundreds = np.arange(200)[None] < 3
    assert pass_at_k(hundreds, 100) == pytest.approx([1 - (100 * 99 * 98) / (200 * 199 * 198)])


def test_programs_are_run_with_their_tests(model: Path, tmp_path: Path, monkeypatch) -> None:
    """What the model continues is cut where something else begins, and run with the tests."""
    ran: list[str] = []

    def run(source: str, limits: Limits) -> Outcome:
        ran.append(source)
        return Outcome("return 1" in source, "", "", 0.0, {})

    monkeypatch.setattr("align.evaluate.programs.run_program", run)
    monkeypatch.setattr(
        "align.evaluate.programs.sampled_texts",
        lambda *_, **__: [[("    return 1\ndef other(): pass", True)], [("    return 2\n", True)]],
    )
    problems = [
        HumanEval("a", "import math\ndef f():\n", "f", "def check(g): assert g() == 1"),
        HumanEval("b", "def g():\n", "g", ""),
    ]
    monkeypatch.setattr(Subject, "is_chat", False)
    found = Programs(problems, workers=1).run(subject(model, tmp_path), limit=None)
    assert found.measures[0].values.tolist() == [1.0, 0.0]
    assert ran[0] == "import math\nimport math\ndef f():\n    return 1\ndef check(g): assert g() == 1\ncheck(f)\n"


def test_the_last_block_of_a_response_is_its_program() -> None:
    assert code_of("Try\n```python\na = 1\n```\nor better\n```\nb = 2\n```") == "b = 2"
    assert code_of("```py\nunfinished = 1") == "unfinished = 1"
    assert code_of("x = 1") == "x = 1"


def test_unit_tests_need_permission_and_read_their_column() -> None:
    with pytest.raises(ValueError, match="allow_code_execution"):
        UnitTests()
    reward = UnitTests(allow_code_execution=True)
    assert reward.columns == ("tests",)
    with pytest.raises(ValueError, match="tests"):
        reward(["p"], ["x = 1"], [{"tests": 3}])


@pytest.mark.skipif("__import__('sys').platform != 'linux'")
def test_unit_tests_reward_what_passes() -> None:
    reward = UnitTests(allow_code_execution=True)
    responses = [
        "```python\ndef f(x): return x + 1\n```",
        "```python\ndef f(x): return x\n```",
        "import os; os._exit(0)",
    ]
    tests = ["assert f(1) == 2", ["assert f(1) == 1", "assert f(2) == 2"], "assert False"]
    assert reward(["p"] * 3, responses, [{"tests": test} for test in tests]) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--prompts", "x.jsonl"], "--judge"),
        (["--programs", "x.jsonl"], "--allow_code_execution"),
        (["--texts", "x.txt", "--n", "3"], "temperature"),
    ],
)
def test_settings_that_do_not_fit_are_usage_errors(model: Path, args: list[str], named: str, capsys) -> None:
    assert main(["eval", str(model), *args]) == 2
    assert named in capsys.readouterr().err


def test_the_service_samples(model: Path) -> None:
    """A response ends where its stop text does, as if a stop token had been sampled."""
    from align.generation.stop_texts import StopTexts
    from align.io.directory import load_network

    network, tokenizer = load_network(model).eval(), Tokenizer.load(model)
    prompts = [tokenizer.encode("one"), tokenizer.encode("two three")]
    sampling = SamplingConfig(max_new_tokens=10)
    whole = sample_responses(network, tokenizer, prompts, sampling, seeds=[1, 2])
    stop = whole.texts[0][2:4]
    ends = StopTexts(tokenizer, [stop], rows=2)
    short = sample_responses(network, tokenizer, prompts, sampling, seeds=[1, 2], on_token=ends)
    assert stop in short.texts[0]
    assert whole.texts[0].startswith(short.texts[0])
    assert short.finished[0]
    assert len(short.ids[0]) < len(whole.ids[0])
