"""``--judge`` with settings, metrics that read columns, and prompts of the Hub, on a tiny model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from naming import error_line

from align.cli import main
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import train_tokenizer

CONFIG = GPTConfig(vocab_size=263, layers=1, heads=2, width=16, ff_width=16, context=64, init_std=0.3)
ANYTHING = "{class_path: Matches, init_args: {pattern: '(?s)^.{0,9}$'}}"
SAMPLING = ["--max_new_tokens", "3", "--batch_size", "4", "--n", "2"]
METRICS = """
from dataclasses import dataclass
from align.compare import Metric
@dataclass(frozen=True)
class Answer(Metric):
    label = meaning = "answer"
    def measure(self, prompts, responses, answer):
        return answer
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judged") / "model"
    tokenizer = train_tokenizer(["ab ab"], vocab_size=263)
    folder.mkdir()
    tokenizer.save(folder)
    ids = {"bos_id": tokenizer.bos_id, "eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
    save_network(GPT(CONFIG), folder, **ids)
    return folder


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "answer_metric.py").write_text(METRICS)
    records = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 4}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return "prompts.jsonl"


def test_a_comparison(model: Path, prompts: str):
    """Three bytes are at most 9 characters: every score is 1. The answers' mean is 2.5."""
    words = ["compare", f"a={model}", f"b={model}", "--prompts", prompts, "--out", "report", "--frontier_n", "0"]
    judges = [ANYTHING, f"short={ANYTHING}", "exact={class_path: ExactAnswer, init_args: {column: answer}}"]
    assert main([*words, *SAMPLING, "--judge", *judges, "--metric", "answer_metric.Answer"]) == 0
    report = json.loads(Path("report/report.json").read_text())
    assert [judge["name"] for judge in report["judges"]] == ["Matches", "short", "exact"]
    assert [len(judge["sources"]) for judge in report["judges"]] == [1, 1, 1]
    found = report["models"]["b"]
    assert [found["rewards"][name]["mean"] for name in ("Matches", "short")] == [1.0, 1.0]
    assert found["metrics"]["Answer"]["mean"] == 2.5


def test_preferences_of_prompts_on_the_hub(model: Path, prompts: str, monkeypatch, capsys):
    import datasets
    import huggingface_hub

    rows = [json.loads(line) for line in Path(prompts).read_text().splitlines()]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: iter(rows))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha="c0ffee"))
    words = ["preferences", str(model), "--out", "best.jsonl", "--best_of", "--keep_unfinished", *SAMPLING]
    assert main([*words, "--prompts", "owner/prompts", "--judge", ANYTHING]) == 0
    told = json.loads(Path("best.jsonl.meta.json").read_text())
    assert told["judge"] == {"name": ANYTHING, "weights": None, "code": None}
    assert told["prompts"]["content"] == ["hub:owner/prompts@c0ffee"]
    assert all(json.loads(line)["score"] == 1.0 for line in Path("best.jsonl").read_text().splitlines())
    wrong = ANYTHING.replace("pattern", "patern")
    assert main([*words, "--prompts", prompts, "--judge", wrong]) != 0
    error_line(capsys, "Matches", "patern")
