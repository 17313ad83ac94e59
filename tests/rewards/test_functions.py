import pytest

from align.rewards import load_reward, sandbox_gold
from align.sandbox import gold_reward

PROMPT = (
    "Tell me a happy tale of a goat named Dora at the lake. Use three sentences. Leave out the jar. Mention a ring."
)


def test_sandbox_is_the_gold_reward():
    answers = ["", "Dora the goat walked to the lake."]
    assert sandbox_gold([PROMPT] * 2, answers) == [gold_reward(PROMPT, answer).total for answer in answers]
    assert load_reward("sandbox") is sandbox_gold


def test_a_function_by_name():
    assert load_reward("statistics:mean")([1.0, 3.0]) == 2.0


@pytest.mark.parametrize("name", ["sandbx", "nowhere:f", "statistics:nothing"])
def test_a_reward_that_does_not_exist_is_named(name: str):
    with pytest.raises(ValueError, match=f"no reward '{name}'"):
        load_reward(name)


def test_prompts_and_responses_must_pair_up():
    with pytest.raises(ValueError, match="zip"):
        sandbox_gold([PROMPT], ["a", "b"])
