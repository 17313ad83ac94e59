import math
import re
import sys
import types
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch

from align.rewards.functions import SandboxGold, columns_read, load_reward
from align.rewards.reward import FunctionReward, Reward
from align.rewards.verifiable import Matches
from align.sandbox import gold_reward

PROMPT = (
    "Tell me a happy tale of a fox named Nora at the mill. Use three sentences. Leave out the drum. Mention a bell."
)


@pytest.fixture
def module(monkeypatch):
    """A module ``judges`` for rewards."""
    made = types.ModuleType("judges")
    monkeypatch.setitem(sys.modules, "judges", made)
    return made


def test_sandbox_is_the_gold_reward():
    answers = ["", "Nora the fox walked to the mill."]
    gold = [gold_reward(PROMPT, answer).total for answer in answers]
    assert SandboxGold().score([PROMPT] * 2, answers) == gold
    assert load_reward("sandbox")([PROMPT] * 2, answers) == gold
    assert load_reward("sandbox").name == "sandbox"


def test_a_function_gets_texts_and_may_answer_with_any_numbers(module):
    seen = []
    module.length = lambda prompts, responses: seen.append(prompts) or [len(text) for text in responses]
    module.array = lambda prompts, responses: np.array([1, 2], dtype=np.float32)
    module.tensor = lambda prompts, responses: torch.tensor([1.0, 2.0])
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert load_reward("judges:length")(["hi", messages], ["abc", "d"]) == [3.0, 1.0]
    assert seen == [["hi", "hello"]]
    assert load_reward("judges:array")(["", ""], ["a", "b"]) == [1.0, 2.0]
    assert load_reward("judges:tensor")(["", ""], ["a", "b"]) == [1.0, 2.0]


def test_a_batch_of_one_and_of_none(module):
    module.length = lambda prompts, responses: [len(text) for text in responses]
    assert load_reward("judges:length")(["hi"], ["abc"]) == [3.0]
    assert load_reward("judges:length")([], []) == []


def test_a_module_of_the_folder_it_is_run_in(tmp_path, monkeypatch):
    """The installed command has its own folder first on the path, and the working directory nowhere."""
    (tmp_path / "mine_alone.py").write_text("def one(prompts, responses):\n    return [1.0] * len(responses)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert load_reward("mine_alone:one")(["a"], ["b"]) == [1.0]


@dataclass(frozen=True)
class Scaled(Reward):
    """Length times a factor."""

    factor: float = 2.0

    def score(self, prompts, responses):
        return [self.factor * len(response) for response in responses]


@dataclass(frozen=True)
class Settings(Reward):
    """A reward that needs a setting."""

    factor: float

    def score(self, prompts, responses):
        return []


@pytest.mark.parametrize("name", ["judges:Scaled", "judges.Scaled", "judges:scaled"])
def test_a_class_is_a_reward(module, name: str):
    module.Scaled, module.scaled = Scaled, Scaled()
    reward = load_reward(name)
    assert reward(["p", "p"], ["abc", ""]) == [6.0, 0.0]
    assert reward.name == "Scaled"
    assert load_reward(Scaled(0.5))(["p"], ["abc"]) == [1.5]


def test_a_reward_with_settings_is_written_as_in_a_recipe(module):
    module.Settings, module.Scaled = Settings, Scaled
    found = load_reward(r"{class_path: Matches, init_args: {pattern: '^\d+,=$'}}")
    assert found == Matches(r"^\d+,=$")
    assert found(["p"] * 2, ["12,=", "a"]) == [1.0, 0.0]
    assert load_reward('{"class_path": "judges.Scaled", "init_args": {"factor": 3}}') == Scaled(3)
    assert load_reward("{class_path: ExactAnswer}") == load_reward("ExactAnswer") == load_reward("exact_answer")
    assert columns_read(["{class_path: MatchesColumn, init_args: {column: rule}}"]) == ("rule",)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{class_path: Matches", "class_path"),
        ("{pattern: x}", "pattern"),
        ("{class_path: Matches, init_args: {patern: x}}", "patern"),
        ("{class_path: Matches, init_args: [x]}", "init_args"),
        ("{class_path: Matches, init_args: {pattern: '('}}", "pattern"),
        ("{class_path: Macthes, init_args: {pattern: x}}", "'Macthes'"),
        ("{class_path: statistics.mean}", "statistics.mean"),
        ("Matches", "'Matches'.*pattern"),
    ],
)
def test_a_mistake_in_the_settings_of_a_reward_is_named(text: str, named: str):
    with pytest.raises(ValueError, match=named) as error:
        load_reward(text)
    assert "\n" not in str(error.value)


def test_what_a_module_has_may_be_no_reward(module):
    module.Settings, module.number = Settings, 3
    with pytest.raises(ValueError, match="'judges.Settings' was given no settings: .*factor"):
        load_reward("judges.Settings")
    with pytest.raises(ValueError, match="no reward 'judges.number': a int"):
        load_reward("judges.number")


@pytest.mark.parametrize(
    "name", ["sandbx", "nowhere:f", "no_where.P", "statistics:nothing", "no/such/directory/at/all"]
)
def test_a_reward_that_does_not_exist_is_named(name: str):
    with pytest.raises(ValueError, match=f"'{name}'") as error:
        load_reward(name)
    assert "\n" not in str(error.value)


def test_prompts_and_responses_must_pair_up():
    with pytest.raises(ValueError, match=r"'sandbox'.*\b1\b.*\b2\b"):
        load_reward("sandbox")([PROMPT], ["a", "b"])


# Failure drills: one line that names the reward, the count, the index and the text.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e16])
def test_a_score_that_is_no_finite_number(value):
    reward = FunctionReward("mine:f", lambda prompts, responses: [1.0, value, 2.0])
    line = rf"'mine:f'.*{re.escape(repr(value))}.*\b1\b.*\b3\b.*'second {'x' * 52}\.\.\."
    with pytest.raises(ValueError, match=line):
        reward(["p"] * 3, ["first", "second " + "x" * 500, "third"])


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 2.0, 3.0]])
def test_the_wrong_count(scores):
    with pytest.raises(ValueError, match=rf"'mine:f'.*\b{len(scores)}\b.*\b2\b"):
        FunctionReward("mine:f", lambda prompts, responses: scores)(["p"] * 2, ["a", "b"])


def test_an_integer_too_long_to_write():
    reward = FunctionReward("mine:f", lambda prompts, responses: [10**5_000])
    with pytest.raises(ValueError, match=f"'mine:f' gave an integer of {(10**5_000).bit_length()} bits for response 0"):
        reward(["p"], ["a"])


def test_other_numbers_are_fine():
    mixed = [True, 2, 3.5, Fraction(1, 2), np.float32(0.25), np.int64(7), torch.tensor(1.5)]
    reward = FunctionReward("mine:f", lambda prompts, responses: mixed)
    assert reward(["p"] * 7, ["a"] * 7) == [1.0, 2.0, 3.5, 0.5, 0.25, 7.0, 1.5]


@pytest.mark.parametrize(
    "scores",
    [3.0, None, [1.0, None], ["good", "bad"], ["1", "2"], "12", b"12", {"a": 1, "b": 2}, {1.0, 2.0}, torch.ones(2, 2)],
    ids=repr,
)
def test_what_is_no_list_of_numbers(scores):
    with pytest.raises(ValueError, match=r"'mine:f'.*\b2\b") as error:
        FunctionReward("mine:f", lambda prompts, responses: scores)(["p"] * 2, ["a", "b"])
    assert "\n" not in str(error.value)


def test_a_function_that_raises_is_asked_again_to_find_the_offender():
    def fragile(prompts, responses):
        if "bad" in responses:
            raise KeyError("no such word\nand more")
        return [0.0] * len(responses)

    line = r"'mine:f'.*KeyError.*no such word.*\b2\b.*\b3\b.*'bad'.*'p2'"
    with pytest.raises(ValueError, match=line) as error:
        FunctionReward("mine:f", fragile)(["p0", "p1", "p2"], ["a", "b", "bad"])
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, KeyError)


def test_a_function_that_raises_on_many_only():
    def crowded(prompts, responses):
        if len(responses) > 1:
            raise RuntimeError
        return [0.0]

    with pytest.raises(ValueError, match=r"'mine:f'.*RuntimeError.*\b2\b"):
        FunctionReward("mine:f", crowded)(["p"] * 2, ["a", "b"])


def test_an_interrupt_is_no_fault_of_the_function():
    def interrupted(prompts, responses):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FunctionReward("mine:f", interrupted)(["p"], ["a"])


def test_constraints_by_short_name():
    """Two constraints, of which the responses satisfy both, one, none, and nothing is said."""
    prompt = "Use no capital letters at all. Describe a cat.\nDo not use any commas."
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": prompt}]
    answers = ["a cat has fur", "A cat has fur", "Cats, dogs", " "]
    assert load_reward("constraints")([prompt] * 4, answers) == [1.0, 0.5, 0.0, 0.0]
    assert load_reward("constraints_strict")([messages] * 4, answers) == [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=re.escape("'constraints'")):
        load_reward("constraints")(["Describe a cat."], ["It has fur."])
