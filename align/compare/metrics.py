"""Comparison metrics: numbers that describe one model's responses.

Each metric is a frozen dataclass with its own settings and one pure method, ``measure``.

Legend: P prompts, N responses to a prompt.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from align.compare.respond import Response
from align.io.code import search_working_directory
from align.rewards.reward import column_arguments, required_parameters
from align.tokenizer.prompts import Columns, Prompt


class Metric(ABC):
    """A number of a model's responses. Subclass it as a frozen dataclass whose fields are settings.

    Attributes:
        label: heading of its column, with the unit.
        meaning: one sentence for the report's glossary.
        is_share: it is in [0, 1], and reports write it in percent.
        is_column: it is a column of the table of models; otherwise a row of "Further metrics", for metrics that come in
            dozens.
    """

    label: ClassVar[str]
    meaning: ClassVar[str]
    is_share: ClassVar[bool] = False
    is_column: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Its key in report.json: the class name, and the settings that the caller chose."""
        return type(self).__name__

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the prompts' records that ``measure`` reads, one for each of its further parameters.

        By default the names of these parameters; a class whose column names are settings says otherwise.
        """
        return required_parameters(self.measure)

    @abstractmethod
    def measure(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[Response]],
        *columns: Any,
        **named_columns: Any,
    ) -> Any:
        """Measure the responses of one model under one seed.

        Args:
            prompts: ``P``.
            responses: ``P`` rows of ``N``.
            *columns: a subclass names the columns that it reads as parameters; each receives ``P`` values, as they are
                in the file.
            **named_columns: the same where parameters are keyword-only.

        Returns:
            Values that numpy reads: ``[P, N]`` one per response, or ``[P]`` one per prompt (fewer than ``P`` if some
            prompts are left out), whose mean gets an interval over prompts and seeds; or a single number without an
            interval; None where there is nothing to measure.
        """


@dataclass(frozen=True)
class Length(Metric):
    """Tokens of each response, the stop token included."""

    label = "tokens"
    meaning = "Mean number of tokens of a response, its stop token included, by the model's own tokenizer."

    def measure(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Any:
        """See ``Metric``."""
        return [[response.tokens for response in row] for row in responses]


@dataclass(frozen=True)
class EOSRate(Metric):
    """Share of responses that a stop token ended."""

    label = "finished"
    meaning = "Share of responses that end with a stop token; the others were truncated at max_new_tokens."
    is_share = True

    def measure(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Any:
        """See ``Metric``."""
        return [[float(response.finished) for response in row] for row in responses]


@dataclass(frozen=True)
class DistinctN(Metric):
    """Different n-grams over all n-grams of all responses (Li et al. 2016); words are separated by white space.

    Raises:
        ValueError: n is below 1.
    """

    meaning = "Different words (n = 1) or sequences of n words over all of them, in all responses of a seed."

    n: int = 2
    """Words of an n-gram"""

    def __post_init__(self) -> None:
        """Reject an invalid n."""
        if self.n < 1:
            raise ValueError(f"DistinctN.n is {self.n}: it must be at least 1")

    @property
    def name(self) -> str:
        """With n."""
        return f"Distinct{self.n}"

    @property
    def label(self) -> str:  # type: ignore[override]
        """With n."""
        return f"distinct-{self.n}"

    def measure(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Any:
        """See ``Metric``; 0 without any n-gram."""
        found: Counter[tuple[str, ...]] = Counter()
        for words in (response.text.split() for row in responses for response in row):
            found.update(zip(*(words[start:] for start in range(self.n)), strict=False))
        return len(found) / total if (total := found.total()) else 0.0


@dataclass(frozen=True)
class DistinctResponses(Metric):
    """Different responses over all responses."""

    label = "distinct responses"
    meaning = "Different responses over all responses of a seed."

    def measure(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Any:
        """See ``Metric``."""
        texts = [response.text for row in responses for response in row]
        return len(set(texts)) / len(texts)


@dataclass(frozen=True)
class SelfBLEU(Metric):
    """Mean BLEU-4 of each response against the others to its prompt (Zhu et al. 2018); 1 if all are the same.

    Raises:
        ValueError: prompts is below 1.
    """

    label = "self-BLEU"
    meaning = "Similarity of a model's responses to one prompt: BLEU-4 of each against the others. 1: all the same."

    prompts: int = 50
    """Prompts that are read, the first ones: a response takes 7 ms"""

    def __post_init__(self) -> None:
        """Reject an invalid count."""
        if self.prompts < 1:
            raise ValueError(f"SelfBLEU.prompts is {self.prompts}: it must be at least 1")

    def measure(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Any:
        """See ``Metric``; None with one response per prompt."""
        if len(responses[0]) < 2:
            return None
        from torchmetrics.functional.text import bleu_score

        found = []
        for row in responses[: self.prompts]:
            texts = [response.text for response in row]
            found.append([float(bleu_score([text], [_without(texts, i)], smooth=True)) for i, text in enumerate(texts)])
        return found


DEFAULT_METRICS: tuple[Metric, ...] = (
    Length(),
    EOSRate(),
    DistinctN(1),
    DistinctN(2),
    DistinctResponses(),
    SelfBLEU(),
)
"""Every comparison has these"""


def load_metrics(path: str) -> tuple[Metric, ...]:
    """Metrics by class path.

    Args:
        path: ``module.Class`` or ``module:Class`` of a ``Metric`` whose fields all have defaults, of an instance, or of
            a tuple of instances.

    Raises:
        ValueError: there is no such module or class, or it is not a metric.
    """
    search_working_directory()
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(import_module(module), name)
        metric = found() if isinstance(found, type) else found
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"no metric {path!r}: {error}; give module.Class") from error
    metrics = metric if isinstance(metric, tuple) else (metric,)
    for each in metrics:
        if not isinstance(each, Metric):
            raise ValueError(f"no metric {path!r}: a {type(each).__name__} is not an align.compare.Metric")
    return metrics


def measured(
    metric: Metric,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    columns: Sequence[Columns] = (),
) -> np.ndarray | None:
    """What a metric gives, checked.

    Args:
        metric: that measures.
        prompts: ``P``.
        responses: ``P`` rows of ``N``.
        columns: of the prompts' records, ``P``; a metric that reads none ignores them.

    Returns:
        ``[P]`` means of prompts (or of fewer), or a single number, or None.

    Raises:
        ValueError: a column is missing, or it raised, or gave another shape, or a value that is not finite; the line
            names the metric.
    """
    name = type(metric).__name__
    parameters = required_parameters(metric.measure)
    read = column_arguments(f"metric {name}", metric.columns, parameters, prompts, columns)
    try:
        given = metric.measure(prompts, responses, **read)
        if given is None:
            return None
        values = np.array(given, dtype=np.float64)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"metric {name} failed: {reason}") from error
    fits = values.ndim == 0 or (values.ndim <= 2 and 0 < len(values) <= len(prompts) and values.size)
    if not fits:
        raise ValueError(
            f"metric {name} gave values of shape {list(values.shape)} for {len(prompts)} prompts: it must give one per "
            "response, one per prompt, or a single number"
        )
    if not np.isfinite(values).all():
        offender = next(value for value in values.ravel().tolist() if not math.isfinite(value))
        raise ValueError(f"metric {name} gave {offender}: it must be finite")
    return values.mean(-1) if values.ndim == 2 else values


def _without(texts: Sequence[str], place: int) -> list[str]:
    return [text for other, text in enumerate(texts) if other != place]
