import pytest
from hypothesis import given
from hypothesis import strategies as st
from naming import naming

from align.environments.calculator import Calculator, calculate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * 7", "84"),
        ("1,000 + 2.50", "1002.5"),
        ("(3 - 5) / 4", "-0.5"),
        ("-(2)", "-2"),
        ("1/3", "0.333333"),
        ("0.1 + 0.2", "0.3"),
        ("7 - 7", "0"),
    ],
)
def test_values(expression: str, value: str):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "1 / 0",
        "2 ** 9",
        "__import__('os')",
        "a + 1",
        "",
        "1 +",
        "9" * 61,
        "9" * 30 + "*" + "9" * 29,
        "'x' * 9",
        "1e400",
        "True",
    ],
)
def test_what_has_no_value_is_told(expression: str):
    assert calculate(expression).startswith("error: ")


@given(st.text(max_size=70))
def test_any_text_is_answered(expression: str):
    assert calculate(expression)


def test_an_episode_by_hand():
    """A question, nothing, and the right answer."""
    environment = Calculator()
    assert environment.columns == ("answer",)
    state = environment.reset("How many?", {"answer": "She has 12 boxes.\n#### 1,084"})
    asked = environment.step(state, "I need <calc>1000 + 84</calc>")
    assert (asked.observation, asked.reward, asked.done, asked.state) == ("1084", 0, False, 1084)
    idle = environment.step(asked.state, "Let me think.")
    assert not idle.done
    assert "<calc>" in idle.observation
    right = environment.step(idle.state, "<calc>1</calc> so #### 1084")
    assert (right.reward, right.done) == (1, True)
    assert environment.step(idle.state, "#### 84").reward == 0


def test_impossible_settings_and_records():
    with pytest.raises(ValueError, match=naming("environment.max_turns", 0)):
        Calculator(max_turns=0)
    with pytest.raises(ValueError, match=naming("environment.role", "system")):
        Calculator(role="system")
    with pytest.raises(ValueError, match=naming("answer", "none")):
        Calculator().reset("p", {"answer": "none"})
