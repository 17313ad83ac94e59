"""A calculator between the turns of a model that solves word problems."""

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from align.environments.environment import Environment, Step
from align.tokenizer.prompts import Columns, Prompt

_ASKED = re.compile(r"<calc>(.*?)</calc>", re.DOTALL)
_ANSWER = re.compile(r"####\s*(-?\d[\d,]*(?:\.\d+)?)")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_LONGEST = 60
"""Characters of an expression"""
_LARGEST = 1e12
"""Largest magnitude of a result"""

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Calculator(Environment):
    """Answers ``<calc>12 * 7</calc>`` with ``84``, until the model writes ``#### 84``.

    The reward is 1 if the number after ``####`` is the record's, and 0 otherwise. A turn with neither an expression nor
    an answer, or with an expression that can't be computed, is told so.

    Raises:
        ValueError: max_turns is below 1.
    """

    max_turns: int = 6
    """Turns of the model after which an episode ends without reward"""
    column: str = "answer"
    """Of the records: the right answer, a number or a text that ends in a number (GSM8K)"""
    role: str = "user"
    """Of its messages: user, or tool for a chat template that has such turns"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if self.max_turns < 1:
            raise ValueError(f"environment.max_turns is {self.max_turns}: it must be at least 1")
        if self.role not in ("user", "tool"):
            raise ValueError(f"environment.role is {self.role!r}: it must be user or tool")

    @property
    def columns(self) -> tuple[str, ...]:
        """The answer."""
        return (self.column,)

    def reset(self, prompt: Prompt, record: Columns) -> float:
        """The right answer.

        Raises:
            ValueError: the record has none.
        """
        found = _NUMBER.findall(str(record.get(self.column, "")))
        if not found:
            raise ValueError(
                f"Calculator needs a number in {self.column!r}, but a record has {record.get(self.column)!r}"
            )
        return _value(found[-1])

    def step(self, state: Any, response: str) -> Step:
        """See ``Environment``."""
        answers, asked = _ANSWER.findall(response), _ASKED.findall(response)
        if answers:
            return Step(reward=float(_value(answers[-1]) == state), done=True)
        told = calculate(asked[-1]) if asked else "write <calc>expression</calc>, or #### and the answer"
        return Step(observation=told, role="tool" if self.role == "tool" else "user", state=state)


def calculate(expression: str) -> str:
    """The value of an expression of numbers, + - * / and parentheses, or in words why it has none.

    Args:
        expression: as the model wrote it; thousands may be separated by commas.

    Returns:
        str: a number without trailing zeros, of at most six decimals.
    """
    if len(expression) > _LONGEST:
        return f"error: more than {_LONGEST} characters"
    try:
        value = _evaluated(ast.parse(expression.replace(",", "").strip(), mode="eval").body)
    except ZeroDivisionError:
        return "error: division by zero"
    except (SyntaxError, ValueError, RecursionError):
        return "error: not an expression of numbers, + - * / and parentheses"
    if not abs(value) <= _LARGEST:
        return "error: the result is too large"
    return f"{value:.6f}".rstrip("0").rstrip(".") or "0"


def _evaluated(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _evaluated(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_evaluated(node.left), _evaluated(node.right))
    raise ValueError


def _value(number: str) -> float:
    return float(number.replace(",", ""))
