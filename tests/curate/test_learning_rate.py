"""Which learning rates align doctor calls too high or too low, and that those of the shipped recipes are neither."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import align.algorithms
from align.curate.checks.settings import LearningRate
from align.curate.context import Context, Run
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.meta import built_without_memory
from align.training.defaults import PRETRAINING

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PUBLISHED = {"smollm2-135m": 134_515_008, "pythia-160m": 162_322_944, "plan": 6_738_415_616}
STARTS = {
    "tiny": "tiny/pretrain",
    "shakespeare": "shakespeare/pretrain",
    "instructions": "shakespeare/pretrain",
    "distillation": "distillation/student_pretrain",
    "questions": "questions/sft",
    "calculator": "calculator/sft",
}
"""Folder of a recipe -> the recipe that pretrains the network it starts from"""


def findings(lr: float, default: float, *, rollouts: bool, adapters: bool = False) -> list[Any]:
    run = Run(lr=lr, default_lr=default, adapters=adapters, rollout_tokens=32 if rollouts else None)
    tokenizer: Any = None
    return list(LearningRate().find(Context("stage", "chats", {}, tokenizer, run)))


@pytest.mark.parametrize(
    ("lr", "rollouts", "found"),
    [
        (9.9e-4, False, False),
        (1e-3, False, True),
        (1e-3, True, False),
        (1.9e-3, True, False),
        (2e-3, True, True),
        (1e-5, False, False),
        (5.1e-6, True, False),
        (5e-6, False, True),
    ],
)
def test_ten_times_the_default_is_too_high_and_with_rollouts_twenty_times(lr: float, rollouts: bool, found: bool):
    """The default is 1e-4; a twentieth of it is too low."""
    assert [one.severity for one in findings(lr, 1e-4, rollouts=rollouts)] == [None] * found


@pytest.mark.parametrize(
    ("stage", "lr", "adapters", "found"),
    [
        ("SFT", 1e-3, True, False),
        ("SFT", 1e-2, True, True),
        ("SFT", 1e-3, False, True),
        ("DPO", 1e-4, True, False),
        ("DPO", 3e-4, True, False),
        ("DPO", 1e-3, True, True),
        ("PPO", 1e-4, True, False),
    ],
)
def test_rates_measured_in_docs_learning_rates(stage: str, lr: float, adapters: bool, found: bool):
    """On SmolLM2-135M: those of its table that ended above the start or wrote garbled text are found."""
    default = getattr(align.algorithms, stage).rate_rule.lr(PUBLISHED["smollm2-135m"], adapters=adapters)
    assert bool(findings(lr, default, rollouts=stage == "PPO", adapters=adapters)) == found


def recipes_with_rates() -> list[tuple[Path, dict[str, Any]]]:
    read = [(path, yaml.safe_load(path.read_text()) or {}) for path in sorted(RECIPES.glob("**/*.yaml"))]
    models = [(path, content["model"]) for path, content in read if "class_path" in content.get("model", {})]
    return [(path, model) for path, model in models if (model["init_args"].get("optimizer") or {}).get("lr")]


def parameters(folder: str) -> int:
    if folder in PUBLISHED:
        return PUBLISHED[folder]
    recipe = yaml.safe_load((RECIPES / f"{STARTS[folder]}.yaml").read_text())
    return new_parameters(recipe["model"]["init_args"]["gpt"])


def new_parameters(gpt: dict[str, Any]) -> int:
    with built_without_memory():
        return GPT(GPTConfig(**gpt)).num_parameters()


@pytest.mark.parametrize(("path", "model"), recipes_with_rates(), ids=lambda value: getattr(value, "stem", None))
def test_the_rate_of_a_shipped_recipe_is_not_found(path: Path, model: dict[str, Any]):
    settings = model["init_args"]
    stage = getattr(align.algorithms, model["class_path"].rpartition(".")[2])
    adapters = bool(settings.get("lora"))
    rule = PRETRAINING if "gpt" in settings else stage.rate_rule
    size = new_parameters(settings["gpt"]) if "gpt" in settings else parameters(path.parent.name)
    default = rule.lr(size, adapters=adapters)
    rollouts = stage is align.algorithms.PPO
    assert findings(float(settings["optimizer"]["lr"]), default, rollouts=rollouts, adapters=adapters) == []
