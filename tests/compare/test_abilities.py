"""The table of abilities: paired changes by hand, and what the reports show of it."""

import numpy as np
import pytest

from align.compare.abilities import abilities
from align.compare.html import write_html
from align.compare.markdown import to_markdown
from align.evaluate.result import Measure, Result


def result(values, *, better: bool | None = True) -> Result:
    measures = [
        Measure.of_items("acc,none", np.array(values, float), higher_is_better=better),
        Measure("x", 1, None, None, None),
    ]
    return Result("task", measures, [], {})


def test_changes_are_paired_over_items_and_seeds() -> None:
    """Forty items; a model of two seeds that is 0.25 above the baseline's only run on every item."""
    base = [i % 2 for i in range(40)]
    better = [value + 0.25 for value in base]
    (row,) = abilities({"base": [[result(base)]], "dpo": [[result(better)], [result(better)]]})
    assert (row["task"], row["measure"], row["items"]) == ("task", "acc,none", 40)
    assert row["models"]["base"]["change"] is None
    change = row["models"]["dpo"]["change"]
    assert (change["mean"], *change["ci95"]) == pytest.approx((0.25, 0.25, 0.25))
    assert row["models"]["dpo"]["verdict"] == "better"
    (row,) = abilities({"base": [[result(base, better=False)]], "dpo": [[result(better, better=False)]]})
    assert row["models"]["dpo"]["verdict"] == "worse"
    (row,) = abilities({"base": [[result(base)]], "dpo": [[result(base)]]})
    assert row["models"]["dpo"]["verdict"] == "no difference shown"


@pytest.mark.parametrize(
    "runs", [[[result([1, 0])], [result([1, 0, 1])]], [[result([1, 0, 1])]], [[result([1, 0])], []]]
)
def test_other_items_are_refused(runs) -> None:
    with pytest.raises(ValueError, match="task: .*evaluated on different"):
        abilities({"base": [[result([1, 0])]], "dpo": runs})


def test_reports_show_the_table(make_report) -> None:
    report, rows = make_report(abilities=True)
    for page in (to_markdown(report, rows), write_html(report, rows)):
        for shown in ("arc_easy", "0.500", "-0.100", "worse"):
            assert shown.replace("-", "\u2212") in page or shown in page
    assert "Abilities" not in to_markdown(*make_report())
