"""Strict accuracy over all constraints, and by kind."""

from typing import Any

from align.compare.constraint_metrics import BY_KIND, KindAccuracy, StrictConstraintAccuracy
from align.compare.metrics import load_metrics, measured
from align.compare.respond import Response
from align.sandbox.constraints import KINDS

PROMPTS = [
    "Use no capital letters at all. Describe a cat.\nDo not use any commas.",
    "Describe a cat. Do not use any commas.",
]
TEXTS = [["a cat has fur", "A cat has fur"], ["Fur", "Fur, eyes"]]


def measure(metric: Any) -> Any:
    rows = [[Response(text, 3, True, 0.0) for text in row] for row in TEXTS]
    found = measured(metric, PROMPTS, rows)
    return None if found is None else found.tolist()


def test_a_response_is_right_if_it_satisfies_all() -> None:
    assert measure(StrictConstraintAccuracy()) == [0.5, 0.5]


def test_a_kind_is_measured_over_the_prompts_that_state_it() -> None:
    assert measure(KindAccuracy("lowercase")) == [0.5]
    assert measure(KindAccuracy("no_commas")) == [1.0, 0.5]
    assert measure(KindAccuracy("json_object")) is None


def test_all_kinds_at_once() -> None:
    assert load_metrics("align.compare.constraint_metrics.BY_KIND") == BY_KIND
    assert [metric.label for metric in BY_KIND] == list(KINDS)
    assert len({metric.name for metric in BY_KIND}) == len(KINDS)
