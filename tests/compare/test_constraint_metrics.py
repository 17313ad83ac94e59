"""Strict accuracy over all constraints, and by kind."""

from collections.abc import Callable
from typing import Any

from align.compare.constraint_metrics import BY_KIND, KindAccuracy, StrictConstraintAccuracy
from align.compare.html import write_html
from align.compare.markdown import models_table, to_markdown
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


def test_kinds_are_rows_of_a_table_of_their_own(make_report: Callable[..., Any]) -> None:
    report, rows = make_report(("sft", "dpo"))
    for kind, value in (("lines", {"mean": 0.25, "ci95": [0.125, 0.5]}), ("title", None)):
        metric = KindAccuracy(kind)
        facts = ("name", "label", "meaning", "is_share", "is_column")
        report["metrics"].append({fact: getattr(metric, fact) for fact in facts})
        for model in report["models"].values():
            model["metrics"][metric.name] = value
    assert "lines" not in models_table(report)[0]
    written = to_markdown(report, rows)
    assert "| lines | 25.0% [12.5%, 50.0%] | 25.0% [12.5%, 50.0%] |" in written
    assert "| title |" not in written
    page = write_html(report, rows)
    assert '<th scope="row">lines</th>' in page
    assert '<th scope="row">title</th>' not in page
