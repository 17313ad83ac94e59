"""The capability tasks of benchmarks/capability_tasks.py: every item by hand, and through the harness."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from align.evaluate.harness_tasks import HarnessSettings, run_harness  # noqa: E402
from align.evaluate.task import Subject  # noqa: E402

CAPITALS = {"Norway": "Oslo", "Peru": "Lima", "Japan": "Tokyo", "Kenya": "Nairobi", "Cuba": "Havana"}
IS_CLOSE = "Determine whether two floating point numbers are close in value."


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import capability_tasks

    yield capability_tasks
    sys.modules.pop("capability_tasks")


def instructions() -> list[dict[str, str]]:
    """Five capitals; then an answer in its own question, an open instruction, and a long answer."""
    rows = [
        {"instruction": f"Name the capital of {land}.", "input": "", "output": f"The capital of {land} is {city}."}
        for land, city in CAPITALS.items()
    ]
    rows += [
        {"instruction": "Is red a colour or a sound?", "input": "", "output": "I think that red is a colour."},
        {"instruction": "Rewrite with a metaphor.", "input": "It rains.", "output": "All of the rain is music."},
        {"instruction": "Why?", "input": "", "output": "The reason for it is that nobody ever asked."},
    ]
    return rows


def right(items) -> list[str]:
    assert all(len(set(item.choices)) == len(item.choices) for item in items)
    return [item.choices[item.label] for item in items]


def test_facts_are_told_from_answers_to_similar_instructions(tasks):
    items = list(tasks.facts(instructions()))
    assert right(items) == list(CAPITALS.values())
    assert all(set(item.choices) <= set(CAPITALS.values()) and len(item.choices) == 4 for item in items)
    assert items[0].text == "Question: Name the capital of Norway.\nAnswer: The capital of Norway is"
    assert len({item.label for item in items}) > 1


def test_the_first_calculation_of_a_solution(tasks):
    solved = "She has 2*3 = <<2*3=6>>6 eggs, then 6+1=<<6+1=7>>7.\n#### 7"
    rows = [{"question": "How many?", "answer": solved}, {"question": "Half?", "answer": "It is <<1/2=0.5>>0.5"}]
    (item,) = tasks.arithmetic(rows)
    assert item.text == "Question: How many?\nAnswer: She has 2*3 ="
    assert right([item]) == ["6"]
    assert set(item.choices) == {"5", "6", "7", "16"}


def test_functions_of_the_standard_library_are_told_from_others_of_their_module(tasks):
    items = list(tasks.python_docs())
    assert len(items) > 300
    found = {item.text: answer for item, answer in zip(items, right(items), strict=True)}
    assert found["In Python, math.isclose does this:"] == IS_CLOSE
    assert items == list(tasks.python_docs())


def test_the_sentence_that_follows_two_others(tasks):
    """Without the short one, each of six sentences from the third on follows two; three remain as wrong ones."""
    text = "It is the first one. Here is the second. This is the third one. No. It goes on and on. Now the next one. "
    text += "So it ends here."
    items = list(tasks.next_sentence([text, "Just one sentence of a text."]))
    assert [item.text.split()[0] for item in items] == ["It", "Here", "This", "It"]
    assert right(items) == ["This is the third one.", "It goes on and on.", "Now the next one.", "So it ends here."]
    assert items[1].text == "Here is the second. This is the third one."
    assert set(items[1].choices[1:] + items[1].choices[:1]) == {
        "It goes on and on.",
        "It is the first one.",
        "Now the next one.",
        "So it ends here.",
    }


def test_the_harness_reads_them(tasks, model: Path, tmp_path: Path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    assert tasks.write_task(folder, "facts", [tasks.Item("one", ["two", "three"], 1)] * 3) == 3
    assert len(json.loads((folder / "facts.jsonl").read_text().splitlines()[0])["choices"]) == 2
    subject = Subject(model, "cpu", 0, 3, tmp_path / "cache")
    runs = run_harness(subject, ["facts"], HarnessSettings(str(folder)), limit=None)
    found = {results[0].task: results[0] for results, _ in runs}
    assert found["facts"].measures[0].name == "acc,none"
    assert found["facts"].items[0]["arguments"][0] == ("one", " two")
