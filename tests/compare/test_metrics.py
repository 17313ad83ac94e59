"""Comparison metrics by hand, and what is refused of a user's."""

import math
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from align.compare.metrics import (
    DistinctN,
    DistinctResponses,
    EOSRate,
    Length,
    Metric,
    SelfBLEU,
    load_metrics,
    measured,
)
from align.compare.respond import Response


def table(*rows: list[str]) -> list[list[Response]]:
    """Responses with a token per character, which are finished if they end with a dot."""
    return [[Response(text, len(text), text.endswith("."), 0.0) for text in row] for row in rows]


def measure(metric: Metric, *rows: list[str]):
    values = measured(metric, ["p"] * len(rows), table(*rows))
    return None if values is None else values.tolist()


def test_means_of_prompts() -> None:
    """Lengths (1, 3) and (2, 2); the second row has one finished response of two."""
    assert measure(Length(), ["a", "abc"], ["ab", "c."]) == [2.0, 2.0]
    assert measure(EOSRate(), ["a", "abc"], ["ab", "c."]) == [0.0, 0.5]


def test_diversity() -> None:
    """a b c d e and a b c d f: 6 different of 10 words, 5 of 8 pairs (ab bc cd de df), two different texts.

    BLEU-4 of one against the other, each precision but the first smoothed by one: (4/5 4/5 3/4 2/3)^(1/4).
    """
    row = ["a b c d e", "a b c d f"]
    assert [measure(metric, row) for metric in (DistinctN(1), DistinctN(2), DistinctResponses())] == [0.6, 0.625, 1.0]
    assert measure(SelfBLEU(), row) == pytest.approx([(4 / 5 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25], abs=1e-3)
    assert DistinctN(3).name == "Distinct3"


def test_responses_that_are_all_the_same() -> None:
    rows = [["a b c d e"] * 2] * 2
    assert [measure(metric, *rows) for metric in (DistinctN(1), DistinctN(2), DistinctResponses())] == [0.25] * 3
    assert measure(SelfBLEU(), *rows) == pytest.approx([1.0, 1.0])
    assert measure(SelfBLEU(prompts=1), *rows) == pytest.approx([1.0])


def test_one_response_per_prompt_has_no_self_bleu_and_empty_ones_no_words() -> None:
    assert measure(SelfBLEU(), ["a"], ["b"]) is None
    assert [measure(metric, [""], [""]) for metric in (DistinctN(1), DistinctResponses())] == [0.0, 0.5]


@pytest.mark.parametrize(("kind", "name"), [(DistinctN, "n"), (SelfBLEU, "prompts")])
def test_impossible_settings_are_named(kind: type[Metric], name: str) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}.{name} is 0"):
        kind(**{name: 0})


@dataclass(frozen=True)
class Given(Metric):
    """Whatever a test gives it."""

    values: object = 1.0
    label = "given"
    meaning = "A test's."

    def measure(self, prompts, responses):
        if isinstance(self.values, Exception):
            raise self.values
        return self.values


def test_one_number_per_prompt_or_for_all() -> None:
    assert measure(Given([1, 2]), ["a", "b"], ["c", "d"]) == [1.0, 2.0]
    assert measure(Given(np.float32(0.5)), ["a"]) == 0.5


@dataclass(frozen=True)
class Near(Metric):
    """Distance of the number of characters from a column."""

    label = meaning = "distance"

    def measure(self, prompts, responses, answer, *, unit):
        return [
            [abs(len(one.text) - number) / by for one in row]
            for row, number, by in zip(responses, answer, unit, strict=True)
        ]


def test_columns_of_the_records() -> None:
    """Lengths (1, 3) against 2, in units of 1, and 2 against 5, in units of 2."""
    rows, columns = table(["a", "abc"], ["ab", "ab"]), [{"answer": 2, "unit": 1}, {"answer": 5, "unit": 2}]
    assert (Near().columns, Length().columns) == (("answer", "unit"), ())
    values = measured(Near(), ["p", "q"], rows, columns)
    assert values is not None
    assert values.tolist() == [1.0, 1.5]
    with pytest.raises(ValueError, match="metric Near reads 'answer', 'unit'.*'q'.*no 'unit'"):
        measured(Near(), ["p", "q"], rows, [columns[0], {"answer": 5}])


@pytest.mark.parametrize(
    "values", [[1.0, 2.0, 3.0], [], [[[1.0]]], [1.0, math.nan], math.inf, "long", KeyError("x"), [[1.0], [1.0, 2.0]]]
)
def test_what_is_no_measurement_names_the_metric(values: object) -> None:
    with pytest.raises(ValueError, match="metric Given ") as error:
        measure(Given(values), ["a", "b"], ["c", "d"])
    assert "\n" not in str(error.value)


def test_a_metric_by_class_path(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_metrics")
    module.Given, module.half, module.both, module.number = Given, Given(0.5), (Given(), Given(0.5)), 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_metrics", module)
    assert load_metrics("my_metrics.Given") == load_metrics("my_metrics:Given") == (Given(),)
    assert load_metrics("my_metrics.half") == (Given(0.5),)
    assert load_metrics("my_metrics.both") == (Given(), Given(0.5))
    for path in ("my_metrics.Nothing", "nowhere.Given", "Given", "my_metrics.number"):
        with pytest.raises(ValueError, match=f"no metric {path!r}"):
            load_metrics(path)
