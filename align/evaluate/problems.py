"""Programs to write, with their tests: records of HumanEval (Chen et al. 2021) and MBPP (Austin et al. 2021)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from align.rewards.fences import fenced
from align.rewards.programs import code_of

Read = TypeVar("Read")

_EXAMPLES = (2, 3, 4)
"""Records of MBPP that its README puts before each task"""
_TESTED = range(11, 511)
"""Records of MBPP's test split"""


class BadProblemError(ValueError):
    """A record that is no problem.

    Attributes:
        number: of the record, from 0.
    """

    def __init__(self, number: int, reason: str) -> None:
        """Keep the number."""
        super().__init__(reason)
        self.number = number


@dataclass(frozen=True)
class Problem(ABC):
    """A program to write.

    Attributes:
        stops: texts that end the continuation of ``prompt``.
    """

    stops: ClassVar[tuple[str, ...]]

    task_id: str
    """Its name"""

    @property
    @abstractmethod
    def prompt(self) -> str:
        """What a model that continues text gets."""

    @property
    @abstractmethod
    def request(self) -> str:
        """What a model that answers chats is asked."""

    @abstractmethod
    def program(self, text: str, *, chat: bool) -> str:
        """Source of the program with its tests.

        Args:
            text: the model's continuation, or its response.
            chat: whether it is a response to ``request``.
        """


@dataclass(frozen=True)
class HumanEval(Problem):
    """A function whose head and docstring are given."""

    stops = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@")  # section 2.1 of the paper, and decorators

    head: str
    """Imports, the head of the function and its docstring"""
    entry_point: str
    """Name of the function"""
    test: str
    """Source of ``check(candidate)``"""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "HumanEval":
        """A record.

        Raises:
            ValueError: a field is missing or not a text.
        """
        return cls(*(_text(record, name) for name in ("task_id", "prompt", "entry_point", "test")))

    @property
    def prompt(self) -> str:
        """See ``Problem``."""
        return self.head

    @property
    def request(self) -> str:
        """See ``Problem``."""
        return f"Complete this Python function. Respond with the whole function.\n\n```python\n{self.head}```"

    def program(self, text: str, *, chat: bool) -> str:
        """See ``Problem``; a continuation ends where something else than the function begins."""
        code = code_of(text) if chat else self.head + _until(text, self.stops)
        # The prompt's imports, which a response may have left out.
        imports = "".join(line + "\n" for line in self.head.splitlines() if line.startswith(("import ", "from ")))
        return f"{imports}{code}\n{self.test}\ncheck({self.entry_point})\n"


@dataclass(frozen=True)
class MBPP(Problem):
    """A function that is described in a sentence and by its tests."""

    stops = ("[DONE]",)

    text: str
    """The description"""
    tests: tuple[str, ...]
    """Assertions"""
    setup: str = ""
    """What runs before them"""
    examples: str = ""
    """Solved problems before a prompt that is continued"""

    @classmethod
    def of(cls, record: Mapping[str, Any], examples: str = "") -> "MBPP":
        """A record of the full or of the sanitized set.

        ``challenge_test_list`` is not run: the paper's numbers are of ``test_list``.

        Raises:
            ValueError: a field is missing or of the wrong type.
        """
        text = _text(record, "prompt" if "prompt" in record else "text")
        setup = [record.get("test_setup_code") or "", *_texts(record, "test_imports", [])]
        return cls(
            str(record.get("task_id")), text, _texts(record, "test_list"), _plain("\n".join(setup)).strip(), examples
        )

    @property
    def prompt(self) -> str:
        """See ``Problem``; with three solved problems where the records have them, as in the set's README."""
        return f"{self.examples}{self.request}\n[BEGIN]\n"

    @property
    def request(self) -> str:
        """See ``Problem``."""
        tests = "\n".join(self.tests)
        return (
            f"You are an expert Python programmer, and here is your task: {self.text} Your code should pass these "
            f"tests:\n\n{tests}"
        )

    def program(self, text: str, *, chat: bool) -> str:
        """See ``Problem``; of a continuation with a fenced block, that block."""
        code = code_of(text) if chat else _until(text, self.stops)
        return "\n".join((self.setup, fenced(code, "python", "py", "python3") or code, *self.tests, ""))


def problems_of(records: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """The problems of records of HumanEval or MBPP.

    Where MBPP's records 2, 3 and 4 are among them, those stand before each prompt as solved examples, and only records
    11 to 510, the test split, are problems; any other records in its format are all problems, without examples.

    Args:
        records: of one file or data set.

    Raises:
        BadProblemError: a record has another form.
    """
    numbers = {
        record["task_id"]: number
        for number, record in enumerate(records)
        if "test_list" in record and isinstance(record.get("task_id"), int)
    }
    published = numbers.keys() >= set(_EXAMPLES)
    examples = "".join(_read(records, numbers[name], _solved) for name in _EXAMPLES) if published else ""
    chosen = [number for name, number in numbers.items() if name in _TESTED] if published else range(len(records))
    return [_read(records, number, lambda record: _problem(record, examples)) for number in chosen]


def _read(records: Sequence[Mapping[str, Any]], number: int, read: Callable[[Mapping[str, Any]], Read]) -> Read:
    try:
        return read(records[number])
    except ValueError as error:
        raise BadProblemError(number, str(error)) from error


def _problem(record: Mapping[str, Any], examples: str) -> Problem:
    return MBPP.of(record, examples) if "test_list" in record else HumanEval.of(record)


def _solved(record: Mapping[str, Any]) -> str:
    return f"{MBPP.of(record).prompt}{_plain(_text(record, 'code')).strip()}\n[DONE]\n\n"


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def _plain(code: str) -> str:
    return code.replace("\r\n", "\n")


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} must be a text, found {value!r}")
    return value


def _texts(record: Mapping[str, Any], field: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
    value = record.get(field, default)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"field {field!r} must be a list of texts, found {value!r}")
    return tuple(value)
