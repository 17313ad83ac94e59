"""Paired differences by hand, and the perplexity of documents."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from align.cli import main
from align.evaluate.perplexity import Perplexity
from align.evaluate.result import Measure, Result, differences
from align.evaluate.task import Subject
from align.evaluate.text_loss import text_losses


def result(values, *, better: bool | None, task="t") -> Result:
    return Result(task, [Measure.of_items("m,none", np.array(values, float), higher_is_better=better)], [], {})


def test_a_constant_difference_has_no_interval() -> None:
    """Forty items that differ by 0.5 each: the gap is 0.5 exactly, and shows which model is better."""
    first, second = [i % 3 + 0.5 for i in range(40)], [i % 3 for i in range(40)]
    for better, winner in ((True, 0), (False, 1), (None, None)):
        (gap,) = differences([result(first, better=better)], [result(second, better=better)])
        assert gap.gap[:3] == pytest.approx((0.5, 0.5, 0.5))
        assert gap.better == winner


def test_few_items_show_nothing() -> None:
    (gap,) = differences([result([1] * 19, better=True)], [result([0] * 19, better=True)])
    assert gap.better is None


def test_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="3 items of one model and 2 of the other"):
        differences([result([1, 2, 3], better=True)], [result([1, 2], better=True)])


def test_the_error_of_a_mean_by_hand() -> None:
    """1, 2, 3: variance 1, error of the mean 1 / sqrt(3)."""
    measure = Measure.of_items("m", np.array([1.0, 2.0, 3.0]), higher_is_better=True)
    assert (measure.value, measure.stderr) == (2.0, pytest.approx(3**-0.5))


def test_perplexity_is_of_sums(model: Path, tmp_path: Path) -> None:
    """A total over bytes and tokens, not a mean over documents; the log answers a second run."""
    texts = ["one two", "three four five, said the fox. " * 6]
    subject = Subject(model, "cpu", 0, 4, tmp_path)
    found = Perplexity(texts, stride=16).run(subject, limit=None)
    losses = text_losses(subject.network, subject.tokenizer, texts, stride=16)
    nats, tokens, size = (sum(column) for column in zip(*losses, strict=True))
    values = {measure.name: measure.value for measure in found.measures}
    assert values["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / size)
    assert values["token_perplexity,none"] == pytest.approx(math.exp(nats / tokens))
    again = Perplexity(texts, stride=16).run(Subject(model, "cpu", 0, 4, tmp_path), limit=None)
    assert again.items == found.items


def test_the_command_writes_texts_results(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"one two three {i}"}) + "\n" for i in range(3)))
    assert main(["eval", str(model), "--texts", str(file), "--limit", "2", "--out", str(tmp_path / "out")]) == 0
    folder = next(path for path in (tmp_path / "out").iterdir() if (path / "results.json").is_file())
    report = json.loads((folder / "results.json").read_text())
    assert report["n-samples"]["Perplexity"]["effective"] == 2
    assert report["results"]["Perplexity"]["bits_per_byte,none"] > 0


def test_nothing_to_evaluate_is_a_usage_error(model: Path, capsys) -> None:
    assert main(["eval", str(model)]) == 2
    assert "--tasks" in capsys.readouterr().err
