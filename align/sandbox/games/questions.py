"""Twenty questions about an animal: 64 of them, told apart by colour, kind and place, and questions with yes or no.

A question names one or two values of one attribute (``Is it red or blue?``), so two good questions decide an attribute
of four values and six decide the animal. The demonstrations ask at random, and guess among what their answers leave: a
model that imitates them has much to gain by asking better.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from align.sandbox.checks import check_sizes
from align.sandbox.games.records import dialogue, write_records

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": ("red", "blue", "green", "white"),
    "kind": ("fox", "owl", "cat", "frog"),
    "place": ("tree", "pond", "barn", "hill"),
}

PROMPT = "Round {number}: I think of an animal. Ask what is yes or no, then guess."
"""The number tells prompts apart; it says nothing about the animal"""

HINT = "ask or guess"
"""What is answered to a turn that is neither a question nor a guess"""

_QUESTION = re.compile(r"^\s*is it (?:a |an |by the )?(\w+)(?: or (?:a |an |by the )?(\w+))?\?\s*$", re.IGNORECASE)
_GUESS = re.compile(r"^\s*it is the (\w+) (\w+) by the (\w+)\.\s*$", re.IGNORECASE)


class Thing(NamedTuple):
    """An animal to be guessed.

    Attributes:
        colour: one of ``ATTRIBUTES``.
        kind: one of them.
        place: one of them.
    """

    colour: str
    kind: str
    place: str

    def __str__(self) -> str:
        """The animal in words, which ``parsed`` reads."""
        return f"{self.colour} {self.kind} by the {self.place}"

    @classmethod
    def parsed(cls, text: str) -> "Thing":
        """The animal that ``str`` gave.

        Raises:
            ValueError: the text is none.
        """
        thing = cls(*re.sub(" by the ", " ", text).split()) if len(text.split()) == 5 else None
        if thing not in THINGS:
            raise ValueError(f"{text!r} is no animal of the game, such as '{THINGS[0]}'")
        return thing


THINGS = tuple(Thing(*values) for values in product(*ATTRIBUTES.values()))


@dataclass(frozen=True)
class QuestionsConfig:
    """Numbers of records, and how long a demonstration asks.

    Raises:
        ValueError: a setting is invalid.
    """

    demonstrations: int = 12_000
    """Chats for supervised fine-tuning"""
    demonstrations_val: int = 200
    """Chats for its validation"""
    prompts: int = 2_000
    """Prompts for training, each with a secret"""
    prompts_val: int = 400
    """Prompts for validation"""
    questions: int = 6
    """Questions of a demonstration before its guess"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        check_sizes(self)


def answer_to(question: str, thing: Thing) -> bool | None:
    """Whether the animal is what a question asks; None for a text that is no question.

    Args:
        question: such as ``Is it a fox or an owl?``; values of different attributes may stand together.
        thing: the animal.
    """
    found = _QUESTION.match(question)
    asked = [value.lower() for value in found.groups() if value] if found else []
    known = {value for values in ATTRIBUTES.values() for value in values}
    if not asked or not known.issuperset(asked):
        return None
    return any(value in thing for value in asked)


def guessed_in(text: str) -> tuple[str, ...] | None:
    """Colour, kind and place of a guess such as ``It is the red fox by the pond.``; None for another text."""
    found = _GUESS.match(text)
    return tuple(value.lower() for value in found.groups()) if found else None


def question(values: list[str], attribute: str) -> str:
    """The question whether an attribute has one of one or two values."""
    article = {"colour": "", "place": "by the "}.get(attribute)
    words = [(("an " if value[0] in "aeiou" else "a ") if article is None else article) + value for value in values]
    return f"Is it {' or '.join(words)}?"


def demonstration(rng: Random, thing: Thing, *, number: int, questions: int) -> list[dict[str, str]]:
    """A chat that asks at random, never the same twice, and guesses one of the animals that its answers allow."""
    texts, left, asked = [PROMPT.format(number=number)], list(THINGS), set[str]()
    while len(asked) < questions:
        attribute = rng.choice([*ATTRIBUTES])
        text = question(rng.sample(ATTRIBUTES[attribute], rng.choice((1, 2))), attribute)
        if text in asked:
            continue
        asked.add(text)
        told = answer_to(text, thing)
        left = [other for other in left if answer_to(text, other) == told]
        texts += [text, "yes" if told else "no"]
    return dialogue(*texts, f"It is the {rng.choice(left)}.")


def write_questions(out: Path, *, seed: int = 0, config: QuestionsConfig = QuestionsConfig()) -> dict[str, int]:  # noqa: B008
    """Write demonstrations, and prompts with a secret, into ``out``.

    Record i of a file depends on the seed, the file and i alone.

    Args:
        out: directory, created if it is missing.
        seed: of everything random.
        config: sizes.

    Returns:
        Records of each file by file name.
    """

    def chats(file: int, count: int) -> Iterator[dict[str, Any]]:
        for number in range(file, file + 4 * count, 4):
            rng = Random(f"{seed}/{number}")
            turns = demonstration(rng, rng.choice(THINGS), number=number, questions=config.questions)
            yield {"messages": turns}

    def prompts(file: int, count: int) -> Iterator[dict[str, Any]]:
        for number in range(file, file + 4 * count, 4):
            secret = Random(f"{seed}/{number}").choice(THINGS)
            yield {"prompt": dialogue(PROMPT.format(number=number)), "secret": str(secret)}

    # Every fourth number belongs to a file, so no two share a prompt.
    files = {
        "sft_train.jsonl": chats(0, config.demonstrations),
        "sft_val.jsonl": chats(1, config.demonstrations_val),
        "prompts_train.jsonl": prompts(2, config.prompts),
        "prompts_val.jsonl": prompts(3, config.prompts_val),
    }
    return write_records(out, files, what="a guessing game of align", seed=seed, config=config)
