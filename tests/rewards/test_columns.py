"""Columns of the records: how a reward names them, what it receives, and mistakes in one line."""

import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest

from align.rewards import FunctionReward, Reward
from align.rewards.functions import code_fingerprint, columns_read

PROMPTS, RESPONSES = ["p0", "p1"], ["a", "bb"]
RECORDS = [{"answer": 3, "tests": ["t0"], "more": None}, {"answer": 5, "tests": ["t1"]}]


@dataclass(frozen=True)
class Longer(Reward):
    """Length of the response, minus a column; its name is a setting."""

    column: str = "answer"

    @property
    def columns(self) -> tuple[str, ...]:
        """The setting."""
        return (self.column,)

    def score(self, prompts, responses, least):
        """Difference."""
        return [len(response) - number for response, number in zip(responses, least, strict=True)]


@dataclass(frozen=True)
class Named(Reward):
    """Two columns by the names of the parameters, one keyword-only."""

    def score(self, prompts, responses, answer, *, tests, scale=10):
        """Both."""
        return [scale * number + len(names[0]) for number, names in zip(answer, tests, strict=True)]


def of_texts(prompts, responses):
    return [len(response) for response in responses]


def of_answers(prompts, responses, answer, weight=2, *more, **others):
    assert not more
    assert not others
    return [weight * number for number in answer]


@pytest.mark.parametrize(
    ("reward", "columns", "scores"),
    [
        (FunctionReward("f", of_texts), (), [1.0, 2.0]),
        (FunctionReward("f", lambda *texts: [0, 0]), (), [0.0, 0.0]),
        (FunctionReward("f", of_answers), ("answer",), [6.0, 10.0]),
        (FunctionReward("f", lambda p, r, *, answer: answer), ("answer",), [3.0, 5.0]),
        (Named(), ("answer", "tests"), [32.0, 52.0]),
        (Longer(), ("answer",), [-2.0, -3.0]),
    ],
)
def test_parameters_name_the_columns(reward: Reward, columns: tuple[str, ...], scores: list[float]):
    """10 * 3 + 2 letters of t0; 1 letter - 3."""
    assert reward.columns == columns
    assert reward(PROMPTS, RESPONSES, RECORDS) == scores


def test_only_a_reward_that_reads_columns_needs_them():
    assert FunctionReward("f", of_texts)(PROMPTS, RESPONSES) == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"'f' reads 'answer'.*\b0 records for 2"):
        FunctionReward("f", of_answers)(PROMPTS, RESPONSES)
    with pytest.raises(ValueError, match=r"'Longer' reads 'tests'.*'p1'.*no 'tests'"):
        Longer("tests")(PROMPTS, RESPONSES, [{"tests": 1}, {"answer": 2}])


def test_a_class_must_take_the_columns_that_it_names():
    class Wrong(Longer):
        def score(self, prompts, responses):
            return []

    with pytest.raises(ValueError, match=r"'Wrong'.*'answer'"):
        Wrong()(PROMPTS, RESPONSES, RECORDS)


def test_the_record_that_raises_is_found():
    """The second answer alone is a text."""
    records: list[dict[str, Any]] = [{"answer": 1}, {"answer": "one"}]
    with pytest.raises(ValueError, match=r"'Longer' raised TypeError.* response 1 of 2 \('bb'\), prompt 'p1'"):
        Longer()(PROMPTS, RESPONSES, records)


def test_columns_of_rewards_by_name(monkeypatch):
    made = types.ModuleType("judges")
    made.of_answers, made.Named = of_answers, Named
    monkeypatch.setitem(sys.modules, "judges", made)
    assert columns_read(["judges:of_answers", None, Longer("b"), "judges.Named", "sandbox", "exact_answer"]) == (
        "answer",
        "b",
        "tests",
    )
    assert columns_read(["some/reward/model"]) == (), "no network is loaded"
    with pytest.raises(ValueError, match="'sandbx'"):
        columns_read(["sandbx"])


def test_the_code_of_a_reward_identifies_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = []
    for number, body in enumerate(("[1.0]", "[2.0]", "[1.0]")):
        name = f"scored{number}"
        (tmp_path / f"{name}.py").write_text(f"def f(prompts, responses, answer):\n    return {body}\n")
        found.append(code_fingerprint(f"{name}:f"))
    assert found[0] == found[2] != found[1]
    assert code_fingerprint("exact_answer") is None
    assert code_fingerprint("some/reward/model") is None
