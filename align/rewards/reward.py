"""The interface of a reward, and the checks on scores that a user's code returns."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any

from align.tokenizer.prompts import Columns, Prompt, as_prompt, as_text

RewardFunction = Callable[..., Sequence[float]]
"""(prompts, responses, column, ...) -> one score per response; higher is better."""

LARGEST_SCORE = 1e15
"""Largest magnitude of a score: rewards are float32, in which the squares of larger ones overflow in a variance"""
_SHOWN = 60
"""Characters of an offending text that an error shows"""


class Reward(ABC):
    """Scores responses to prompts; higher is better.

    Subclass it as a frozen dataclass whose fields are settings. Calling a reward checks what ``score`` returns.

    Attributes:
        name: what errors call it; the class name unless the class says otherwise.
    """

    name: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name the class."""
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name", cls.__name__)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the records that ``score`` reads, one for each of its required parameters after the responses.

        By default the names of these parameters; a class whose column names are settings says otherwise.
        """
        return required_parameters(self.score)

    @property
    def summed(self) -> "Mapping[str, Part]":
        """Name -> what this reward is a weighted sum of; by default nothing."""
        return MappingProxyType({})

    def loaded(self, load: "Callable[[str | Reward], Reward]") -> "Reward":
        """The reward with what it is made of loaded; by default itself.

        Args:
            load: finds a reward by name, and loads a reward model.
        """
        return self

    @abstractmethod
    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], *columns: Any, **named_columns: Any
    ) -> Sequence[float]:
        """Score each response. Deterministic, or a resumed run differs from an uninterrupted one.

        Args:
            prompts: as they are in the data, a text or a list of messages; a single user message is its text.
                ``align.tokenizer.prompts.as_text`` gives the text of the last message.
            responses: as many texts.
            *columns: a subclass names the columns that it reads as parameters; each receives as many values, as they
                are in the data.
            **named_columns: the same where parameters are keyword-only.

        Returns:
            Sequence[float]: one finite number per response; a list, an array or a tensor.
        """

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Sequence[Columns] = ()
    ) -> list[float]:
        """``score``, checked.

        Args:
            prompts: of the responses.
            responses: texts.
            columns: of the prompts' records, in the same order; a reward that reads none ignores them.

        Raises:
            ValueError: the counts differ, or a column is missing, or ``score`` raised, or did not return one finite
                number per response; the line names the reward and the response.
        """
        check_counts(self.name, prompts, responses)
        if not responses:
            return []
        # The same prompt looks the same wherever it was read.
        prompts = [as_prompt(prompt) for prompt in prompts]
        values = self._arguments(prompts, columns)
        try:
            scores = self.score(prompts, responses, **values)
        except Exception as error:
            raise self._raised(error, prompts, responses, values) from error
        return checked_scores(self.name, scores, responses)

    def _parameters(self) -> tuple[str, ...]:
        """The parameters that receive ``columns``."""
        return required_parameters(self.score)

    def _arguments(self, prompts: Sequence[Prompt], columns: Sequence[Columns]) -> dict[str, list[Any]]:
        """Parameter -> values of its column."""
        return column_arguments(f"reward {self.name!r}", self.columns, self._parameters(), prompts, columns)

    def _raised(
        self, error: Exception, prompts: Sequence[Prompt], responses: Sequence[str], values: Mapping[str, list[Any]]
    ) -> ValueError:
        """The error to report; responses are scored one by one to find the one that fails."""
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                self.score([prompt], [response], **{name: [column[index]] for name, column in values.items()})
            except Exception as alone:
                where = f"response {index} of {len(responses)} ({shown(response)}), prompt {shown(as_text(prompt))}"
                return ValueError(f"reward {self.name!r} raised {_described(alone)} on {where}")
        return ValueError(
            f"reward {self.name!r} raised {_described(error)} on {len(responses)} responses, on none alone"
        )


@dataclass(frozen=True)
class Part:
    """A reward with its weight.

    Raises:
        ValueError: the weight is 0, NaN or infinite.
    """

    reward: str | Reward
    """Reward by name, class path or directory"""
    weight: float = 1.0
    """Multiplies its scores; below 0 for what responses should avoid"""

    def __post_init__(self) -> None:
        """Reject impossible weights."""
        if not math.isfinite(self.weight) or self.weight == 0:
            raise ValueError(f"weight is {self.weight}; it must be finite and not 0")


class FunctionReward(Reward):
    """A Python function of texts as a reward.

    Args:
        name: what errors call it.
        function: (prompts, responses) -> scores; of a list of messages it receives the text of the last one. Its other
            required parameters name the columns that it reads.
    """

    def __init__(self, name: str, function: RewardFunction) -> None:
        """Keep both."""
        self.name, self.function = name, function

    @property
    def columns(self) -> tuple[str, ...]:
        """See ``Reward``."""
        return self._parameters()

    def _parameters(self) -> tuple[str, ...]:
        return required_parameters(self.function)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], **columns: Sequence[Any]) -> Sequence[float]:
        """See ``Reward``."""
        return self.function([as_text(prompt) for prompt in prompts], list(responses), **columns)


def required_parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters after the first two that have no default."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[2:]
    except (TypeError, ValueError):  # a builtin without a signature
        return ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(of.name for of in parameters if of.kind in named and of.default is of.empty)


def column_arguments(
    reader: str, names: Sequence[str], parameters: Sequence[str], prompts: Sequence[Prompt], records: Sequence[Columns]
) -> dict[str, list[Any]]:
    """What the parameters that receive columns are called with.

    Args:
        reader: what reads the columns, for errors.
        names: of the columns.
        parameters: of the function, as many as names.
        prompts: of the records.
        records: as many, if there are columns to read.

    Returns:
        dict: parameter -> values of its column.

    Raises:
        ValueError: the counts differ, or a record has no such column.
    """
    if len(names) != len(parameters):
        raise ValueError(
            f"{reader} reads the columns {tuple(names)}, but takes {tuple(parameters)} after the responses: give one "
            "parameter per column"
        )
    if not names:
        return {}
    read = ", ".join(map(repr, names))
    if len(records) != len(prompts):
        raise ValueError(
            f"{reader} reads {read} of the records, but got {len(records)} records for {len(prompts)} prompts: read "
            "the prompts from a file that has these columns"
        )
    for prompt, record in zip(prompts, records, strict=True):
        for name in names:
            if name not in record:
                raise ValueError(
                    f"{reader} reads {read}, but the record of prompt {shown(as_text(prompt))} has no {name!r}"
                )
    return {parameter: [record[name] for record in records] for parameter, name in zip(parameters, names, strict=True)}


def checked_scores(name: str, scores: Any, responses: Sequence[str]) -> list[float]:
    """Scores as floats.

    Args:
        name: of the reward.
        scores: what it returned: a sequence of numbers, an array or a tensor.
        responses: what it scored.

    Raises:
        ValueError: they are not one number per response, or one is not finite or beyond ``LARGEST_SCORE``.
    """
    listed = scores.tolist() if hasattr(scores, "tolist") else scores
    if isinstance(listed, str | bytes | Mapping | set | frozenset):
        raise _no_scores(name, scores, responses, f"a {type(listed).__name__} is not a list of numbers")
    try:
        values = [score.item() if hasattr(score, "item") else score for score in listed]
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_scores(name, scores, responses, str(error)) from None
    if len(values) != len(responses):
        raise ValueError(f"reward {name!r} gave {len(values)} scores for {len(responses)} responses")
    for index, value in enumerate(values):
        where = f"response {index} of {len(responses)} ({shown(responses[index])})"
        is_number = isinstance(value, Real)  # float() would also parse strings
        if not is_number:
            raise _no_scores(name, scores, responses, f"{shown(value)} for {where} is a {type(value).__name__}")
        if not -LARGEST_SCORE <= value <= LARGEST_SCORE:
            raise ValueError(
                f"reward {name!r} gave {shown(value)} for {where}; it must be a finite number, at most "
                f"{LARGEST_SCORE:g} either way"
            )
    return [float(value) for value in values]


def check_counts(name: str, prompts: Sequence[Prompt], responses: Sequence[str]) -> None:
    """Refuse prompts and responses that don't pair up.

    Raises:
        ValueError: there are more of one than of the other.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"reward {name!r} was given {len(prompts)} prompts and {len(responses)} responses")


def shown(value: Any) -> str:
    """The start of a value, in one line."""
    if isinstance(value, int) and value.bit_length() > 64:
        # Python refuses to write integers of more than 4,300 digits.
        return f"an integer of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _no_scores(name: str, scores: Any, responses: Sequence[str], reason: str) -> ValueError:
    return ValueError(
        f"reward {name!r} gave {shown(scores)} for {len(responses)} responses, not one number each: "
        f"{' '.join(reason.split())}"
    )


def _described(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
