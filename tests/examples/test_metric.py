"""examples/metric.py in ``align compare``, from a directory of the user's own."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from align.cli import main
from align.compare import Response

COMPARE = ["compare", "one", "other", "--prompts", "prompts.jsonl", "--judge", "reward:score", "--frontier_n", "0"]
COMPARE += ["--n", "2", "--max_new_tokens", "4", "--out", "report"]


def test_a_metric_joins_the_report(copy_example: Callable[[str], None], toys: Path):
    """Untrained models thank nobody: 0 in every response, with an interval."""
    copy_example("metric")
    copy_example("reward")
    assert main([*COMPARE, "--metric", "metric.Politeness"]) == 0
    report = json.loads(Path("report/report.json").read_text())
    assert report["metrics"][-1]["name"] == "Politeness"
    for model in report["models"].values():
        assert model["metrics"]["Politeness"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    label = import_module("metric").Politeness.label
    assert f"<dt>{label}</dt>" in Path("report/report.html").read_text()
    head = next(line for line in Path("report/report.md").read_text().splitlines() if line.startswith("| model"))
    assert label in head


def test_by_hand(copy_example: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    copy_example("metric")
    monkeypatch.syspath_prepend(tmp_path)
    rows = [[Response("Thank you", 2, True, 0.0), Response("no", 1, True, 0.0)]]
    assert import_module("metric").Politeness().measure(["p"], rows) == [[1.0, 0.0]]


@pytest.mark.parametrize("path", ["metric.Rudeness", "metrics.Politeness", "metric.dataclass"])
def test_what_is_no_metric_is_named(
    copy_example: Callable[[str], None], toys: Path, capsys: pytest.CaptureFixture[str], path: str
):
    copy_example("metric")
    copy_example("reward")
    assert main([*COMPARE, "--metric", path]) == 2
    error = capsys.readouterr().err
    assert path in error
    assert error.count("\n") == 1
