"""Word problems of one or two operations, and demonstrations that solve them with a calculator, not always well.

A demonstration asks the calculator for an expression and writes its result (``#### 33``), or answers at once. Some ask
for the wrong expression, and those that answer at once are mostly wrong: a model that imitates them has much to gain by
asking for the right one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from align.sandbox.checks import check_sizes
from align.sandbox.games.records import dialogue, write_records
from align.sandbox.words import NAMES

_OBJECTS = ("apples", "shells", "pens", "coins", "cards", "stones", "beads", "keys")


class Problem(NamedTuple):
    """A word problem.

    Attributes:
        text: the problem.
        expression: whose value is the answer.
        wrong: an expression of the same numbers that is not asked for.
        answer: the answer.
    """

    text: str
    expression: str
    wrong: str
    answer: int


@dataclass(frozen=True)
class ArithmeticConfig:
    """Numbers of records, and what the demonstrations do.

    Raises:
        ValueError: a setting is invalid.
    """

    demonstrations: int = 16_000
    """Chats for supervised fine-tuning"""
    demonstrations_val: int = 200
    """Chats for its validation"""
    prompts: int = 4_000
    """Prompts for training"""
    prompts_val: int = 400
    """Prompts for validation; no problem is in two files"""
    right_rate: float = 0.4
    """Share of demonstrations that ask for the right expression, in [0, 1]"""
    wrong_rate: float = 0.3
    """Share that asks for a wrong one; the others answer at once"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        check_sizes(self, rates=("right_rate", "wrong_rate"))
        if self.right_rate + self.wrong_rate > 1:
            raise ValueError(f"right_rate {self.right_rate} and wrong_rate {self.wrong_rate} add up to more than 1")


def _bought(rng: Random, name: str, things: str) -> Problem:
    a, b, c = rng.randint(2, 40), rng.randint(2, 9), rng.randint(2, 12)
    text = f"{name} has {a} {things}. {name} buys {b} bags of {c}. How many {things} now?"
    return Problem(text, f"{a} + {b} * {c}", f"{a} + {b} + {c}", a + b * c)


def _gave(rng: Random, name: str, things: str) -> Problem:
    b, c = rng.randint(2, 9), rng.randint(2, 9)
    a = rng.randint(b * c, 99)
    text = f"{name} has {a} {things}. {name} gives {b} friends {c} each. How many {things} are left?"
    return Problem(text, f"{a} - {b} * {c}", f"{a} - {b} - {c}", a - b * c)


def _shared(rng: Random, name: str, things: str) -> Problem:
    b, each = rng.randint(2, 9), rng.randint(2, 12)
    a = b * each
    return Problem(
        f"{name} shares {a} {things} among {b} friends. How many {things} has each?", f"{a} / {b}", f"{a} - {b}", each
    )


def _rows(rng: Random, name: str, things: str) -> Problem:
    a, b = rng.randint(3, 25), rng.randint(3, 25)
    text = f"{name} lays {a} rows of {b} {things}. How many {things} lie there?"
    return Problem(text, f"{a} * {b}", f"{a} + {b}", a * b)


def _lost(rng: Random, name: str, things: str) -> Problem:
    a, b = rng.randint(20, 99), rng.randint(2, 99)
    c = rng.randint(1, a)
    text = f"{name} has {a} {things}, loses {c} and finds {b}. How many {things} now?"
    return Problem(text, f"{a} - {c} + {b}", f"{a} + {c} + {b}", a - c + b)


def _boxes(rng: Random, name: str, things: str) -> Problem:
    a, b, c = rng.randint(2, 30), rng.randint(2, 30), rng.randint(2, 9)
    text = f"{name} puts {a} {things} and {b} more into each of {c} boxes. How many {things} in all?"
    return Problem(text, f"({a} + {b}) * {c}", f"{a} + {b} * {c}", (a + b) * c)


KINDS: tuple[Callable[[Random, str, str], Problem], ...] = (_bought, _gave, _shared, _rows, _lost, _boxes)


def problem(rng: Random) -> Problem:
    """A problem of a random kind."""
    return rng.choice(KINDS)(rng, rng.choice(NAMES), rng.choice(_OBJECTS))


def demonstration(rng: Random, given: Problem, config: ArithmeticConfig) -> list[dict[str, str]]:
    """A chat that solves a problem as the settings say, with the calculator's turns."""
    drawn = rng.random()
    if drawn < config.right_rate + config.wrong_rate:
        expression = given.expression if drawn < config.right_rate else given.wrong
        value = eval(expression)  # noqa: S307 (our own)
        told = f"{value:.6f}".rstrip("0").rstrip(".")
        return dialogue(given.text, f"<calc>{expression}</calc>", told, f"#### {told}")
    return dialogue(given.text, f"#### {max(0, given.answer + rng.randint(-9, 9))}")


def write_arithmetic(out: Path, *, seed: int = 0, config: ArithmeticConfig = ArithmeticConfig()) -> dict[str, int]:  # noqa: B008
    """Write demonstrations, and prompts with their answers, into ``out``.

    Args:
        out: directory, created if it is missing.
        seed: of everything random.
        config: sizes, and what the demonstrations do.

    Returns:
        Records of each file by file name.
    """
    seen = set[str]()

    def problems(name: str, count: int) -> Iterator[tuple[Random, Problem]]:
        rng = Random(f"{seed}/{name}")
        while count:
            given = problem(rng)
            if given.text not in seen:
                seen.add(given.text)
                count -= 1
                yield rng, given

    def chats(name: str, count: int) -> Iterator[dict[str, Any]]:
        return ({"messages": demonstration(rng, given, config)} for rng, given in problems(name, count))

    def prompts(name: str, count: int) -> Iterator[dict[str, Any]]:
        return ({"prompt": dialogue(given.text), "answer": given.answer} for _, given in problems(name, count))

    # Validation first: its problems must not depend on how many there are for training.
    files = {
        "prompts_val.jsonl": prompts("prompts_val", config.prompts_val),
        "sft_val.jsonl": chats("sft_val", config.demonstrations_val),
        "prompts_train.jsonl": prompts("prompts_train", config.prompts),
        "sft_train.jsonl": chats("sft_train", config.demonstrations),
    }
    return write_records(out, files, what="word problems of align", seed=seed, config=config)
