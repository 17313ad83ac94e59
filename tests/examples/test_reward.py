"""examples/reward.py: the function judges, the class with settings trains a policy."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from align.cli import main
from align.rewards import load_reward

ALONE = ["--judge", "reward:score", "--max_new_tokens", "4", "--json"]
CLASS = {"class_path": "reward.Polite", "init_args": {"words": ["a"], "cost": 0.5}}


@pytest.fixture
def recipe(copy_example: Callable[[str], None], toys: Path) -> str:
    """A GRPO recipe of one iteration whose reward, gold reward and judge are a class with settings."""
    copy_example("reward")
    rollout = {"episodes": 8, "group_size": 4, "max_new_tokens": 4}
    settings = {"init_from": "one", "reward": CLASS, "estimator": "GRPO", "rollout": rollout}
    settings |= {"update": {"epochs": 1, "minibatches": 1}, "gold": CLASS}
    settings |= {"policy_evaluation": {"prompts": 0, "judge": CLASS}}
    data = {"tokenizer": "one", "train": ["prompts.jsonl"], "context": 24, "batch_size": 4, "cache_dir": "cache"}
    whole = {
        "trainer": {"default_root_dir": "run", "max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model_directory": {"which": "last"},
        "model": {"class_path": "align.algorithms.PPO", "init_args": settings},
        "data": {"class_path": "align.data.PromptData", "init_args": data},
    }
    Path("grpo.yaml").write_text(yaml.safe_dump(whole))
    return "grpo.yaml"


def test_a_class_with_settings_trains_a_policy(recipe: str):
    assert main(["fit", "--config", recipe]) == 0
    saved = json.loads(Path("run/model/align.json").read_text())["recipe"]["model"]["init_args"]
    assert saved["reward"] == saved["gold"] == saved["policy_evaluation"]["judge"] == CLASS


def test_its_own_checks_reach_the_command_line(recipe: str, capsys: pytest.CaptureFixture[str]):
    assert main(["fit", "--config", recipe, "--model.init_args.reward.init_args.cost=-1"]) == 2
    assert "Polite.cost is -1.0" in capsys.readouterr().err


def test_a_function_judges(copy_example: Callable[[str], None], toys: Path, capsys: pytest.CaptureFixture[str]):
    copy_example("reward")
    assert main(["generate", "one", "--prompts", "prompts.jsonl", *ALONE]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["reward"] for line in lines] == [0.0] * 4


def test_by_hand(copy_example: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """ "Thank you, please" has both words and 17 characters: 2 - 0.17."""
    copy_example("reward")
    monkeypatch.syspath_prepend(tmp_path)
    reward = import_module("reward")
    assert reward.Polite()(["p", "p"], ["Thank you, please", ""]) == pytest.approx([1.83, 0.0])
    assert reward.score(["p", "p"], ["THANKS", "no"]) == [1.0, 0.0]
    records = [{"most_words": 2}, {"most_words": 2}]
    assert load_reward("reward:within")(["p", "p"], ["two words", "three of them"], records) == [1.0, 0.0]
