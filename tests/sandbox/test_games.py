"""The guessing game and the word problems: what their files hold, and how well their demonstrations play."""

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from naming import naming

from align.cli import main
from align.environments import Calculator, TwentyQuestions
from align.sandbox.games import (
    ArithmeticConfig,
    QuestionsConfig,
    Thing,
    answer_to,
    guessed_in,
    write_arithmetic,
    write_questions,
)
from align.sandbox.games.questions import ATTRIBUTES, THINGS, question

FOX = Thing("red", "fox", "pond")


def records(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("Is it red?", True), ("Is it blue or red?", True), ("Is it blue or green?", False), ("Is it a fox?", True),
        ("Is it an owl or a fox?", True), ("Is it by the pond?", True), ("is it by the barn or by the hill? ", False),
        ("Is it an owl or red?", True), ("Is it purple?", None), ("Is it red or purple?", None), ("It is red?", None),
        ("Is it red", None), ("Is it red or blue or green?", None), ("", None),
    ],
)  # fmt: skip
def test_answers(asked, told):
    assert answer_to(asked, FOX) is told


def test_every_question_of_the_generator_is_understood_as_it_was_meant():
    for attribute, values in ATTRIBUTES.items():
        for first in values:
            for chosen in ([first], *([first, other] for other in values if other != first)):
                for thing in THINGS:
                    assert answer_to(question(chosen, attribute), thing) == (getattr(thing, attribute) in chosen)


def test_guesses_and_names():
    assert len(THINGS) == len({*THINGS}) == 64
    for thing in THINGS:
        assert Thing.parsed(str(thing)) == thing
        assert guessed_in(f"It is the {thing}.") == tuple(thing)
    assert guessed_in("It is the red fox.") is None
    for text in ("", "red fox", "red fox by the sea", "fox red by the pond"):
        with pytest.raises(ValueError, match="no animal"):
            Thing.parsed(text)


def test_demonstrations_of_the_game_are_consistent_and_far_from_perfect(tmp_path: Path):
    """Answers are those of one animal, guesses fit all of them, and many are wrong."""
    config = QuestionsConfig(demonstrations=400, demonstrations_val=5, prompts=60, prompts_val=30, questions=5)
    write_questions(tmp_path, config=config)
    secrets = {record["secret"] for name in ("train", "val") for record in records(tmp_path, f"prompts_{name}")}
    assert {Thing.parsed(secret) for secret in secrets} <= {*THINGS}
    assert len(secrets) > 40
    sizes = []
    for record in records(tmp_path, "sft_train"):
        prompt, *turns, last = record["messages"]
        pairs = [(turns[i]["content"], turns[i + 1]["content"]) for i in range(0, len(turns), 2)]
        assert len(pairs) == 5
        left = [t for t in THINGS if all(answer_to(asked, t) == (told == "yes") for asked, told in pairs)]
        assert guessed_in(last["content"]) in left
        sizes.append(len(left))
    right = sum(1 / size for size in sizes) / len(sizes)
    assert 0.1 < right < 0.5
    prompts = [
        record["prompt"][0]["content"]
        for name in ("prompts_train", "prompts_val")
        for record in records(tmp_path, name)
    ]
    assert len(prompts) == len({*prompts}) == 90


def test_word_problems_are_solved_by_their_expressions(tmp_path: Path):
    """The calculator gives the answer of every right demonstration; about as many are right as was asked for."""
    config = ArithmeticConfig(demonstrations=600, demonstrations_val=5, prompts=60, prompts_val=30)
    write_arithmetic(tmp_path, config=config)
    kinds = {"answered": 0, "asked": 0}
    for record in records(tmp_path, "sft_train"):
        _, first, *rest = record["messages"]
        kinds["asked" if rest else "answered"] += 1
        if not rest:
            assert re.fullmatch(r"#### \d+", first["content"])
            continue
        told, last = rest
        assert Calculator().step(0.0, first["content"]).observation == told["content"]
        assert last["content"] == f"#### {told['content']}"
    assert 0.6 < kinds["asked"] / 600 < 0.8
    everything = [
        text
        for name in ("sft_train", "sft_val", "prompts_train", "prompts_val")
        for record in records(tmp_path, name)
        for text in [(record.get("messages") or record["prompt"])[0]["content"]]
    ]
    assert len(everything) == len({*everything})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"(\w+) has (\d+) \w+\. \w+ buys (\d+) bags of (\d+)", lambda a, b, c: a + b * c),
        (r"(\w+) has (\d+) \w+\. \w+ gives (\d+) friends (\d+) each", lambda a, b, c: a - b * c),
        (r"(\w+) shares (\d+) \w+ among (\d+) friends", lambda a, b: Fraction(a, b)),
        (r"(\w+) lays (\d+) rows of (\d+) ", lambda a, b: a * b),
        (r"(\w+) has (\d+) \w+, loses (\d+) and finds (\d+)", lambda a, b, c: a - b + c),
        (r"(\w+) puts (\d+) \w+ and (\d+) more into each of (\d+) boxes", lambda a, b, c: (a + b) * c),
    ],
    ids=naming,
)
def test_answers_of_word_problems_by_hand(tmp_path: Path, text, answer):
    write_arithmetic(tmp_path, config=ArithmeticConfig(demonstrations=0, prompts=300, prompts_val=0))
    found = 0
    for record in records(tmp_path, "prompts_train"):
        if match := re.match(text, record["prompt"][0]["content"]):
            assert record["answer"] == answer(*map(int, match.groups()[1:]))
            found += 1
    assert found > 20


@pytest.mark.parametrize("game", ["questions", "arithmetic"])
def test_files_depend_on_the_seed_alone(tmp_path: Path, capsys, game):
    small = ["--demonstrations", "4", "--demonstrations_val", "2", "--prompts", "3", "--prompts_val", "2"]
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["sandbox", game, "--out", str(tmp_path / folder), "--seed", seed, *small]) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 5
    for name in names:
        a, b, c = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert a == b
        assert a != c


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (QuestionsConfig, {"prompts": -1}),
        (ArithmeticConfig, {"right_rate": 1.5}), (ArithmeticConfig, {"right_rate": 0.6, "wrong_rate": 0.6}),
        (ArithmeticConfig, {"demonstrations": -1}),
    ],
)  # fmt: skip
def test_invalid_settings(config, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        config(**settings)


def test_the_environment_plays_a_game():
    game = TwentyQuestions()
    state = game.reset("", {"secret": "red fox by the pond"})
    assert game.columns == ("secret",)
    steps = [
        game.step(state, text) for text in ("Is it red?", "Is it an owl?", "Hello", "It is the red fox by the pond.")
    ]
    assert [step.observation for step in steps[:3]] == ["yes", "no", "ask or guess"]
    assert [step.reward for step in steps] == [0, 0, 0, 1]
    assert [step.done for step in steps] == [False, False, False, True]
    wrong = game.step(state, "It is the blue fox by the pond.")
    assert (wrong.reward, wrong.done) == (0, True)


@pytest.mark.parametrize("record", [{}, {"secret": "a purple fox"}, {"secret": 3}])
def test_a_record_without_an_animal(record):
    with pytest.raises(ValueError, match="secret"):
        TwentyQuestions().reset("", record)
    with pytest.raises(ValueError, match="max_turns"):
        TwentyQuestions(max_turns=0)
