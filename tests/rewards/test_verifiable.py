"""Rewards that check a response against its record, by hand."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from align.rewards import ConstraintsColumn, ExactAnswer, Matches, MatchesColumn, load_reward
from align.rewards.verifiable import last_number

GSM8K = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k-test.jsonl"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"),
        ("It is $18.", "18"),
        ("first 3, then 1,234.50 dollars", "1234.5"),
        ("1,2,3", "3"),
        ("1,2345", "2345"),
        ("-5", "-5"),
        ("-$5", "-5"),
        ("\u22125", "-5"),
        ("16-3", "3"),
        ("(2)-3", "3"),
        ("x=18", "18"),
        ("\\boxed{1002}", "1002"),
        (".5", "0.5"),
        ("72%", "72"),
        ("1/2", "2"),
        ("no number", None),
        ("", None),
        ("\u0663", None),
    ],
)
def test_the_last_number(text: str, number: str | None):
    """Separators, currency and minus signs; an Arabic three is no number that the data could mean."""
    assert last_number(text) == (None if number is None else Decimal(number))


def test_the_right_number_scores_1():
    """The answer after the mark, as a text and as a number; 0.1 + 0.2 is exactly 0.3 as decimals, not as floats."""
    answers = ["1 + 1 = <<1+1=2>>2\n#### 1,002", "1002", 1002, 0.3, -4]
    records = [{"answer": answer} for answer in answers]
    right = ["It is $1,002.00", "#### 1002", "1002 apples", "0.30", "so -4."]
    wrong = ["1002 or 1003", "", "1002.5", "0.30000000000000004", "4"]
    reward = load_reward("exact_answer")
    assert reward == ExactAnswer()
    assert reward(["q"] * 5, right, records) == [1.0] * 5
    assert reward(["q"] * 5, wrong, records) == [0.0] * 5


@pytest.mark.parametrize("answer", ["", "none", "#### ", "between 3 and 4", True, None, ["3"], float("nan")])
def test_an_answer_without_a_number_is_named(answer):
    with pytest.raises(ValueError, match=r"'exact_answer' raised ValueError.*'solution'") as error:
        ExactAnswer("solution")(["q"], ["3"], [{"solution": answer}])
    assert "\n" not in str(error.value)


def test_every_published_answer_is_its_own_right_response():
    if not GSM8K.is_file():
        pytest.skip("needs ../shared/data/gsm8k-test.jsonl")
    records = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    assert sum(ExactAnswer()(["q"] * len(records), [record["answer"] for record in records], records)) == 1319


def test_a_pattern_of_all_prompts_and_one_of_each_record():
    responses = ["The cat sat.", "the dog"]
    assert Matches(r"^The \w+")(["p", "p"], responses) == [1.0, 0.0]
    assert Matches("").columns == ()
    records = [{"pattern": "dog$"}, {"pattern": "(?i)THE dog$"}]
    assert MatchesColumn()(["p", "p"], responses, records) == [0.0, 1.0]
    assert MatchesColumn("expected").columns == ("expected",)


def test_what_is_no_regular_expression():
    with pytest.raises(ValueError, match=r"Matches\.pattern is '\('"):
        Matches("(")
    for pattern in ("(", 3):
        with pytest.raises(ValueError, match=r"'MatchesColumn' raised ValueError.*'pattern'"):
            MatchesColumn()(["p"], ["r"], [{"pattern": pattern}])


def test_the_constraints_of_each_record():
    """At most three words and no commas: both, one and none of them; a record of one kind is met or not."""
    both = [{"kind": "words_at_most", "most": 3}, {"kind": "no_commas"}]
    records = [{"constraints": both}] * 3 + [{"constraints": both[:1]}]
    responses = ["One, two", "one two", "one, two, three, four", "one two three four"]
    assert ConstraintsColumn()(["p"] * 4, responses, records) == [0.5, 1, 0, 0]
    assert ConstraintsColumn(strict=True)(["p"] * 4, responses, records) == [0, 1, 0, 0]
    assert ConstraintsColumn("asked").columns == ("asked",)
    for asked in (None, [], {}, ["no_commas"], [{"kind": "no_such"}], [{"kind": "words_at_most", "count": 3}]):
        with pytest.raises(ValueError, match="constraints"):
            ConstraintsColumn()(["p"], ["r"], [{"constraints": asked}])
