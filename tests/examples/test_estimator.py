"""examples/my_estimator.py in `align fit`, from a directory of its own, as a user would run it."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from align.cli import main
from align.io.directory import save_network
from align.io.manifest import read_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import train_tokenizer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/my_estimator.py"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a toy GRPO recipe in the current directory, beside the example."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    shutil.copy(EXAMPLE, "my_estimator.py")
    tokenizer = train_tokenizer(["ab ab"], vocab_size=263)
    tokenizer.save(tmp_path / "model")
    network = GPT(GPTConfig(vocab_size=263, layers=1, heads=2, width=16, ff_width=16, context=32))
    network.initialise(0)
    save_network(network, "model", bos_id=None, eos_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": letter}) + "\n" for letter in "abcd"))
    Path("length.py").write_text("def score(prompts, responses): return [len(response) for response in responses]")
    settings = {
        "init_from": "model",
        "reward": "length:score",
        "estimator": "my_estimator.RankEstimator",
        "rollout": {"episodes": 8, "group_size": 4, "max_new_tokens": 4},
        "update": {"epochs": 1, "minibatches": 1},
        "policy_evaluation": {"prompts": 0},
    }
    data = {"tokenizer": "model", "train": ["prompts.jsonl"], "context": 24, "batch_size": 4, "cache_dir": "cache"}
    whole = {
        "trainer": {"default_root_dir": "run", "max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model_directory": {"which": "last"},
        "model": {"class_path": "align.algorithms.PPO", "init_args": settings},
        "data": {"class_path": "align.data.PromptData", "init_args": data},
    }
    Path("grpo.yaml").write_text(yaml.safe_dump(whole))
    return "grpo.yaml"


def test_a_class_beside_the_recipe_trains(recipe: str):
    words = ["fit", "--config", recipe, "--model.init_args.estimator.init_args.spread", "0.5"]
    assert main(words) == 0
    estimator = read_manifest(Path("run/model"))["recipe"]["model"]["init_args"]["estimator"]
    assert estimator == {"class_path": "my_estimator.RankEstimator", "init_args": {"spread": 0.5}}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model.init_args.estimator.init_args.spread=-1"], "estimator.spread is -1.0"),
        (["--model.init_args.estimator.init_args.spred=1"], "spred"),
        (["--model.init_args.estimator=GRPQ"], "GRPQ"),
        (["--model.init_args.estimator=RLOO", "--model.init_args.value.lr_factor=2"], "RLOO"),
        (["--model.init_args.estimator=RLOO", "--model.init_args.kl.estimator=K3"], "K3"),
        (["--model.init_args.estimator=RLOO", "--model.init_args.rollout.group_size=1"], "rollout.group_size"),
    ],
)
def test_a_mistake_is_one_line(recipe: str, capsys: pytest.CaptureFixture[str], extra: list[str], message: str):
    assert main(["fit", "--config", recipe, *extra]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("align fit: error: ")
    assert message in last


def test_ranks_by_hand(recipe: str):
    """5 beats two and loses to 9: (2 - 1) / 3. The two 1s lose to two: -2 / 3."""
    from my_estimator import RankEstimator

    got = RankEstimator().compare(torch.tensor([[5.0, 1.0, 9.0, 1.0], [0.7, 0.7, 0.7, 0.7]]))
    assert got[0].tolist() == pytest.approx([1 / 3, -2 / 3, 1, -2 / 3])
    assert got[1].tolist() == [0, 0, 0, 0]
