"""Columns of a prompt file reach the judge of every command, and the classes of a recipe that score."""

import json
import sys
from pathlib import Path

import pytest
from naming import error_line

from align.cli import main
from align.cli.lightning import make_cli

RECIPES = Path(__file__).parents[2] / "recipes/tiny"
JUDGES = """
def plus(prompts, responses, answer):
    return [number + len(prompt) / 10 for prompt, number in zip(prompts, answer, strict=True)]
"""
SAMPLING = ["--max_new_tokens", "3", "--batch_size", "4"]


@pytest.fixture
def folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a judge, and prompts of which the third has an answer that the others' file lacks."""
    (tmp_path / "column_judge.py").write_text(JUDGES)
    records = [{"prompt": "x" * (1 + i), "answer": i} for i in range(3)]
    (tmp_path / "whole.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    records[2].pop("answer")
    (tmp_path / "lacking.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("column_judge", None)


def command(verb: str, run: Path, file: str, judge: str = "column_judge:plus") -> list[str]:
    model = str(run / "sft/model")
    if verb == "generate":
        return [verb, model, "--prompts", file, "--judge", judge, "--n", "2", "--json", *SAMPLING]
    if verb == "preferences":
        words = [verb, model, "--prompts", file, "--judge", judge, "--n", "2", "--out", "best.jsonl", "--best_of"]
        return [*words, "--keep_unfinished", *SAMPLING]
    words = [verb, f"a={model}", f"b={model}", "--prompts", file, "--judge", f"plus={judge}", "--out", "report"]
    return [*words, "--n", "2", "--frontier_n", "0", *SAMPLING]


@pytest.mark.parametrize("verb", ["generate", "preferences", "compare"])
def test_a_missing_column_is_named_by_file_and_line(folder: Path, run: Path, capsys, verb: str):
    assert main(command(verb, run, "lacking.jsonl")) != 0
    error_line(capsys, "lacking.jsonl", "line 3", "'answer'", alone=True)


def test_a_judge_that_reads_columns_needs_a_file(folder: Path, run: Path, capsys):
    assert main(["generate", str(run / "sft/model"), "--prompt", "x", "--judge", "exact_answer"]) == 2
    error_line(capsys, "exact_answer", "'answer'", "--prompts", alone=True)


def test_samples_and_best_responses_are_scored_by_their_columns(folder: Path, run: Path, capsys):
    """Prompt x has answer 0 and one letter: 0.1; xx 1.2, xxx 2.3."""
    assert main(command("generate", run, "whole.jsonl")) == 0
    samples = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = {"x": 0.1, "xx": 1.2, "xxx": 2.3}
    assert [sample["reward"] for sample in samples] == [expected[sample["prompt"]] for sample in samples]
    assert main(command("preferences", run, "whole.jsonl")) == 0
    chats = [json.loads(line) for line in Path("best.jsonl").read_text().splitlines()]
    assert len(chats) == 3
    assert all(chat["score"] == expected[chat["messages"][0]["content"]] for chat in chats)
    assert [chat["answer"] for chat in chats] == [0, 1, 2], "for the judge of a later stage"
    judge = json.loads(Path("best.jsonl.meta.json").read_text())["judge"]
    assert len(judge["code"]) == 64


def test_logged_scores_belong_to_columns(folder: Path, run: Path):
    """The same prompts with other answers are scored again; the mean is (0.1 + 1.2 + 2.3) / 3, then 1 more."""
    for more in (0, 1):
        records = [{"prompt": "x" * (1 + i), "answer": i + more} for i in range(3)]
        Path("whole.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        assert main(command("compare", run, "whole.jsonl")) == 0
        report = json.loads(Path("report/report.json").read_text())
        assert report["models"]["b"]["rewards"]["plus"]["mean"] == pytest.approx(1.2 + more)
    assert len(list(Path("report/cache").glob("scores-*"))) == 2


def test_a_weighted_sum_in_a_file_is_followed_by_its_parts(folder: Path, run: Path):
    """The judge above counts twice; no response of three tokens has 99 words, so the other part is 0."""
    parts = "{plus: {reward: 'column_judge:plus', weight: 2}, long: {reward: {class_path: Length, init_args: "
    parts += "{least: 99}}, weight: 3}}"
    Path("mix.yaml").write_text(f"class_path: align.rewards.WeightedSum\ninit_args:\n  parts: {parts}\n")
    assert main(command("preferences", run, "whole.jsonl", "mix.yaml")) == 0
    meta = json.loads(Path("best.jsonl.meta.json").read_text())
    assert meta["mean_score"] == pytest.approx(
        {"responses": 2.4, "best": 2.4, "responses/plus": 1.2, "responses/long": 0}
    )
    assert len(meta["judge"]["code"]) == 64
    assert main(command("compare", run, "whole.jsonl", "mix.yaml")) == 0
    report = json.loads(Path("report/report.json").read_text())
    means = {name: found["mean"] for name, found in report["models"]["b"]["rewards"].items()}
    assert means == pytest.approx({"plus": 2.4, "plus/plus": 1.2, "plus/long": 0})
    scored = ["eval", str(run / "sft/model"), "--prompts", "whole.jsonl", "--judge", "mix.yaml", "--out", "scored"]
    assert main([*scored, "--max_new_tokens", "3"]) == 0
    found = json.loads(Path("scored/sft/results.json").read_text())["results"]["WeightedSum"]
    names = ("score,none", "score,plus", "score,long")
    assert [found[name] for name in names] == pytest.approx([2.4, 1.2, 0])


def test_a_recipe_rewards_with_a_weighted_sum():
    """As YAML, with parts by name and with settings."""
    spec = "{class_path: WeightedSum, init_args: {parts: {answer: {reward: exact_answer, weight: 2}, "
    spec += "short: {reward: {class_path: Length, init_args: {most: 30, margin: 10}}}}}}"
    words = [f"--config={RECIPES / 'grpo'}.yaml", f"--model.init_args.reward={spec}"]
    found = make_cli(words, parse_only=True).config.model.init_args.reward
    assert found.class_path == "align.rewards.WeightedSum"
    answer, short = found.init_args.parts["answer"], found.init_args.parts["short"]
    assert (answer.reward, answer.weight, short.weight) == ("exact_answer", 2.0, 1.0)
    assert short.reward.init_args.most == 30


def test_gold_and_judge_are_classes_with_settings():
    """As a command line gives them, beside the names that the recipes have."""
    spec = "{class_path: align.rewards.ExactAnswer, init_args: {column: solution}}"
    words = [f"--config={RECIPES / 'grpo'}.yaml", f"--model.init_args.gold={spec}"]
    words.append(f"--model.init_args.policy_evaluation.judge={spec}")
    settings = make_cli(words, parse_only=True).config.model.init_args
    for found in (settings.gold, settings.policy_evaluation.judge):
        assert (found.class_path, found.init_args.column) == ("align.rewards.ExactAnswer", "solution")
    words = [f"--config={RECIPES / 'reward'}.yaml", f"--model.init_args.gold={spec}"]
    assert make_cli(words, parse_only=True).config.model.init_args.gold.init_args.column == "solution"
