"""``align play``: episodes, their transcripts, and which tokens of them training counts."""

import json
import sys
from pathlib import Path

import pytest
import torch
from naming import error_line

from align.cli import main
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.sandbox.games import QuestionsConfig, write_questions
from align.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that ends its turns at random, and prompts of the game."""
    made = tmp_path_factory.mktemp("play")
    write_questions(made, config=QuestionsConfig(demonstrations=20, demonstrations_val=1, prompts=4, prompts_val=3))
    tokenizer = train_tokenizer(["Is it red? yes no"], vocab_size=280)
    (made / "model").mkdir()
    tokenizer.save(made / "model")
    network = GPT(GPTConfig(vocab_size=280, layers=1, heads=2, width=16, ff_width=16, context=256))
    network.initialise(0)
    with torch.no_grad():
        network.output_weight[tokenizer.end_of_turn_id] += 0.3
    ids = {"bos_id": tokenizer.bos_id, "eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
    save_network(network, made / "model", **ids)
    return made


def words(folder: Path, *more: str) -> list[str]:
    given = ["play", str(folder / "model"), "--environment", "TwentyQuestions", "--prompts"]
    return [*given, str(folder / "prompts_val.jsonl"), "--max_new_tokens", "12", *more]


def test_transcripts_alternate_between_the_model_and_the_game(folder: Path, capsys):
    assert main(words(folder, "--json", "--n", "2", "--out", str(folder / "out.jsonl"))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (folder / "out.jsonl").read_text().splitlines() == lines
    episodes = [json.loads(line) for line in lines]
    assert len(episodes) == 6
    assert max(episode["turns"] for episode in episodes) > 1
    for episode in episodes:
        spans = episode["transcript"]
        assert [span["by"] for span in spans] == (["model", "environment"] * len(spans))[: len(spans)]
        assert episode["turns"] == sum(span["by"] == "model" for span in spans)
        for span in spans:
            assert ("ask or guess" in span["text"]) == (span["by"] == "environment")
        assert episode["reward"] == 0
    assert main(words(folder, "--json", "--n", "2", "--batch_size", "2")) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_the_summary_has_an_interval(folder: Path, capsys):
    assert main(words(folder, "--limit", "2", "--show", "1")) == 0
    out = capsys.readouterr().out
    assert out.count("> Round") == 1
    assert "reward: mean 0.000 [0.000, 0.000] (95%, 2 prompts)" in out


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--environment", "Chess"], "Chess"),
        (["--environment", "{class_path: TwentyQuestions, init_args: {max_turns: 0}}"], "max_turns"),
        (["--temperature", "0"], "temperature"),
        (["--n", "0"], "n is 0"),
    ],
)
def test_mistakes(folder: Path, capsys, more, named):
    assert main(words(folder, *more)) == 2
    error_line(capsys, named)


def test_an_environment_of_the_users_own(folder: Path, tmp_path: Path, monkeypatch, capsys):
    """A module in the working directory, which the installed command does not have on its path."""
    (tmp_path / "own_game.py").write_text(
        "from dataclasses import dataclass\n"
        "from align.environments import Environment, Step\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Ends(Environment):\n"
        "    def reset(self, prompt, record):\n        return None\n\n"
        "    def step(self, state, response):\n        return Step(reward=2.0, done=True)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    assert main(words(folder, "--environment", "own_game.Ends", "--limit", "2", "--show", "0")) == 0
    assert "reward: mean 2.000 [2.000, 2.000] (95%, 2 prompts)" in capsys.readouterr().out


def test_records_without_the_column(folder: Path, capsys):
    (folder / "bare.jsonl").write_text('{"prompt": "a"}\n')
    given = ["play", str(folder / "model"), "--environment", "Calculator", "--prompts", str(folder / "bare.jsonl")]
    assert main(given) == 1
    error_line(capsys, "answer")
