"""Weighted sums of rewards: scores by hand, by name and as files, and what is refused."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from align.rewards import ExactAnswer, Length, Matches, Part, Reward, WeightedSum, load_reward
from align.rewards.functions import code_fingerprint, columns_read, part_names
from align.rewards.weighted_sum import scores_of

MIX = """
class_path: align.rewards.WeightedSum
init_args:
  parts:
    answer: {reward: exact_answer, weight: 2}
    short:
      reward: {class_path: Length, init_args: {most: 3, margin: 2}}
      weight: -0.5
"""
RESPONSES = ["it is 3", "I say that 3", "4"]
RECORDS = [{"answer": "3"}] * 3


@pytest.fixture
def mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mix.yaml").write_text(MIX)
    return "mix.yaml"


def test_scores_by_hand(mix: str):
    """Right answers count 2; 3, 4 and 1 words score 1, 0.5 and 1, each -0.5 of it."""
    reward = load_reward(mix)
    assert reward == WeightedSum({"answer": Part(ExactAnswer(), 2.0), "short": Part(Length(most=3, margin=2), -0.5)})
    assert reward.columns == ("answer",)
    assert scores_of(reward, ["q"] * 3, RESPONSES, RECORDS) == (
        [1.5, 1.75, -0.5],
        {"answer": [1, 1, 0], "short": [1, 0.5, 1]},
    )
    assert reward(["q"] * 3, RESPONSES, RECORDS) == [1.5, 1.75, -0.5]
    assert reward.score(["q"] * 3, RESPONSES, ["3"] * 3) == [1.5, 1.75, -0.5]
    assert reward([], []) == []


def test_parts_by_name(mix: str):
    assert part_names(mix) == ("answer", "short")
    assert part_names("exact_answer") == ()
    assert load_reward(f"{mix}#short") == Length(most=3, margin=2)
    assert load_reward(f"{mix}#answer") == ExactAnswer()
    assert columns_read([f"{mix}#short"]) == ()
    with pytest.raises(ValueError, match="'mix.yaml#long'.*answer, short"):
        load_reward(f"{mix}#long")
    with pytest.raises(ValueError, match="'exact_answer#a'.*none"):
        load_reward("exact_answer#a")


def test_sums_of_sums():
    inner = WeightedSum({"a": Part(Matches("a")), "b": Part(Matches("b"), 3.0)})
    outer = load_reward(WeightedSum({"inner": Part(inner, 0.5), "c": Part(Matches("c"))}))
    assert outer(["p"] * 2, ["ab", "bc"]) == [2.0, 2.5]


def test_the_code_of_its_parts_identifies_a_sum():
    assert code_fingerprint(WeightedSum({"a": Part("exact_answer")})) is None
    ours = WeightedSum({"a": Part("exact_answer"), "b": Part(Ours())})
    assert code_fingerprint(ours) not in (None, code_fingerprint(WeightedSum({"b": Part(Ours())})))


def test_impossible_sums():
    with pytest.raises(ValueError, match="parts is empty"):
        WeightedSum()
    with pytest.raises(ValueError, match="'a/b'"):
        WeightedSum({"a/b": Part("exact_answer")})
    for weight in (0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"weight is {weight}"):
            Part("exact_answer", weight)
    with pytest.raises(ValueError, match="'Ours' raised"):
        WeightedSum({"a": Part(Ours())})(["p"], [""])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no reward 'mix.yaml'"),
        ("class_path: align.rewards.Length\ninit_args: {mst: 3}", "mst"),
        ("class_path: align.rewards.Lengthy", "Lengthy"),
        ("class_path: [", "no reward 'mix.yaml'"),
    ],
)
def test_files_that_describe_no_reward(mix: str, text: str, named: str):
    Path(mix).write_text(text)
    with pytest.raises(ValueError, match=named) as error:
        load_reward(mix)
    assert "\n" not in str(error.value)


def test_an_absent_file():
    with pytest.raises(ValueError, match=r"absent\.yaml"):
        load_reward("absent.yaml")


@dataclass(frozen=True)
class Ours(Reward):
    """The code point of the first letter."""

    def score(self, prompts, responses):
        return [float(ord(response[0])) for response in responses]
