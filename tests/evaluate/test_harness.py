"""align's models in lm-evaluation-harness, item by item against the harness's own model for transformers."""

import json
from pathlib import Path

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from lm_eval.models.huggingface import HFLM  # noqa: E402

from align.cli import main  # noqa: E402
from align.evaluate.harness_tasks import HarnessSettings, results_of, run_harness  # noqa: E402
from align.evaluate.task import Subject  # noqa: E402

NAMES = ("choice", "whole", "write")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ours(model: Path, tasks: Path, cache: Path):
    subject = Subject(model, "cpu", 0, 4, cache)
    return {
        result.task: result
        for some, _ in run_harness(subject, NAMES, HarnessSettings(str(tasks), chat="no"), limit=None)
        for result in some
    }


@pytest.fixture(scope="module")
def theirs(model: Path, tasks: Path):
    """The harness's own model; its softmax in float32 rounds more than ours, so it is in float64."""
    peer = HFLM(pretrained=str(model), dtype="float32", softmax_dtype="float64", batch_size=1, device="cpu")
    manager = lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(model=peer, tasks=[*NAMES], task_manager=manager, bootstrap_iters=0)
    return {result.task: result for result in results_of(found, chat=False)}


@pytest.mark.parametrize("name", NAMES)
def test_items_agree_with_the_harness_on_transformers(ours, theirs, name: str) -> None:
    assert len(ours[name].items) == len(theirs[name].items) == 6
    for mine, other in zip(ours[name].items, theirs[name].items, strict=True):
        for left, right in zip(mine["filtered_resps"], other["filtered_resps"], strict=True):
            if name == "write":
                assert left == right
            elif name == "choice":
                assert left == (pytest.approx(right[0], abs=1e-4), right[1])
            else:
                assert left == pytest.approx(right, abs=1e-4)
    for mine, other in zip(ours[name].measures, theirs[name].measures, strict=True):
        assert (mine.name, mine.higher_is_better) == (other.name, other.higher_is_better)
        assert mine.value == pytest.approx(other.value, rel=1e-5)
        assert mine.values == pytest.approx(other.values, rel=1e-4)


def test_a_second_run_asks_the_model_nothing(model: Path, tasks: Path, cache: Path, ours, monkeypatch) -> None:
    from align.evaluate import harness_model

    monkeypatch.setattr(harness_model, "likelihoods", lambda *_: pytest.fail("the log has all answers"))
    monkeypatch.setattr(harness_model, "sample_responses", lambda *_, **__: pytest.fail("the log has all responses"))
    subject = Subject(model, "cpu", 0, 4, cache)
    for some, _ in run_harness(subject, NAMES, HarnessSettings(str(tasks), chat="no"), limit=None):
        for result in some:
            assert [measure.value for measure in result.measures] == [of.value for of in ours[result.task].measures]


def test_results_have_the_harness_schema(model: Path, tasks: Path, tmp_path: Path, capsys) -> None:
    args = ["eval", f"a={model}", f"b={model}", "--tasks", "choice", "--include", str(tasks), "--limit", "4"]
    assert main([*args, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "out" / "a" / "results.json").read_text())
    assert {"results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config"} <= set(report)
    assert 0 <= report["results"]["choice"]["acc,none"] <= 1
    assert report["n-samples"]["choice"] == {"original": 6, "effective": 4}
    items = [json.loads(line) for line in (tmp_path / "out" / "a" / "samples_choice.jsonl").read_text().splitlines()]
    assert [item["doc_id"] for item in items] == [0, 1, 2, 3]
    gaps = json.loads((tmp_path / "out" / "differences.json").read_text())["differences"]["b"]
    assert {(gap["measure"], gap["gap"]["mean"], gap["better"]) for gap in gaps} == {
        ("acc,none", 0.0, None),
        ("acc_norm,none", 0.0, None),
    }
    assert "choice" in capsys.readouterr().out


def test_an_unknown_task_is_refused(model: Path, tasks: Path, capsys) -> None:
    assert main(["eval", str(model), "--tasks", "choise", "--include", str(tasks)]) == 1
    assert "did you mean choice" in capsys.readouterr().err


def test_a_comparison_shows_what_alignment_cost_in_abilities(model: Path, tasks: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"one two {word}"}) + "\n" for word in ("a", "b")))
    args = ["compare", f"a={model}", f"b={model}", "--prompts", str(prompts), "--out", str(tmp_path / "out")]
    args += ["--n", "1", "--max_new_tokens", "4", "--frontier_n", "0"]
    assert main([*args, "--eval", "choice", "--include", str(tasks), "--chat", "no", "--device", "cpu"]) == 0
    (first, second) = json.loads((tmp_path / "out" / "report.json").read_text())["abilities"]
    assert [row["measure"] for row in (first, second)] == ["acc,none", "acc_norm,none"]
    assert first["models"]["b"]["change"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert first["models"]["b"]["verdict"] == "no difference shown"
    assert "choice" in (tmp_path / "out" / "report.html").read_text()
