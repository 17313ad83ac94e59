"""Small multi-turn tasks with a known answer: a guessing game, and word problems to be solved with a calculator."""

from align.sandbox.games.arithmetic import ArithmeticConfig, write_arithmetic
from align.sandbox.games.questions import QuestionsConfig, Thing, answer_to, guessed_in, write_questions

__all__ = [
    "ArithmeticConfig",
    "QuestionsConfig",
    "Thing",
    "answer_to",
    "guessed_in",
    "write_arithmetic",
    "write_questions",
]
