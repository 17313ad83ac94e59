"""The reward of programs that pass their unit tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.execution import Limits, run_program
from align.rewards.fences import fenced
from align.rewards.reward import Reward, shown
from align.tokenizer.prompts import Prompt


@dataclass(frozen=True)
class UnitTests(Reward):
    """1 if the program in a response passes the tests of its record, else 0.

    The program is the last fenced block of the response, or all of it without one. It runs shut in (docs/evaluate.md);
    a program that ends before its tests do has not passed.

    Raises:
        ValueError: running programs was not allowed.
    """

    allow_code_execution: bool = False
    """Must be true: the programs of a model run on this machine"""
    column: str = "tests"
    """Column of the tests: Python source, or a list of statements such as MBPP's ``assert f(1) == 2``"""
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    """What a program may use"""

    def __post_init__(self) -> None:
        """Refuse to run what was not allowed."""
        if not self.allow_code_execution:
            raise ValueError(
                "UnitTests runs programs that a model wrote: set allow_code_execution to true if that is intended"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The column of the tests."""
        return (self.column,)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], tests: Sequence[Any]) -> list[float]:
        """See ``Reward``.

        Raises:
            ValueError: tests are neither a text nor a list of texts.
        """
        programs = [
            f"{code_of(response)}\n{self._source(test)}\n" for response, test in zip(responses, tests, strict=True)
        ]
        return [float(run_program(program, self.limits).passed) for program in programs]

    def _source(self, tests: Any) -> str:
        if isinstance(tests, str):
            return tests
        if isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests):
            return "\n".join(tests)
        raise ValueError(f"column {self.column!r} must be Python source or a list of statements, found {shown(tests)}")


def code_of(response: str) -> str:
    """The program in a response: its last fenced block of Python, or all of it."""
    found = fenced(response, "python", "py", "python3")
    return response if found is None else found
