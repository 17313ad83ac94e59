"""The code behind settings: a run that resumes after it was edited, and a pipeline that trained with it."""

from pathlib import Path

import pytest

from align.cli.code_settings import code_settings
from align.pipeline.stages import Stage
from align.training.resume import describe_changes, refuse_changes, settings_changes

SETTINGS = {
    "model.class_path": "align.algorithms.PPO",
    "model.init_args.reward": "edited_rewards:score",
    "model.init_args.policy_evaluation.judge": "edited_rewards.Judge",
    "model.init_args.estimator.class_path": "edited_rewards.Mean",
    "model.init_args.gold": "no_such_module:score",
    "data.init_args.train": "edited_rewards:score",
}


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_rewards.py"
    file.write_text(
        "from align.rewards import Reward\n"
        "def score(prompts, responses):\n    return [0.0] * len(responses)\n"
        "class Mean:\n    pass\n"
        "class Judge(Reward):\n    def score(self, prompts, responses):\n        return []\n"
    )
    return file


def test_edited_code_is_treated_as_another_value_of_its_setting(module: Path):
    before = code_settings(SETTINGS)
    names = ["model.init_args.reward", "model.init_args.policy_evaluation.judge", "model.init_args.estimator"]
    assert list(before) == [f"{name}.code" for name in names]
    assert code_settings(SETTINGS) == before
    module.write_text(module.read_text().replace("0.0", "1.0"))
    changes = settings_changes(SETTINGS | before, SETTINGS | code_settings(SETTINGS))
    assert [change.key for change in changes] == list(before)
    with pytest.raises(ValueError, match=r"reward\.code.*estimator\.code") as refused:
        refuse_changes(changes, "last.ckpt")
    assert "judge" not in str(refused.value)
    (judged,) = [change for change in changes if "judge" in change.key]
    effect, warnings = describe_changes([judged])
    assert not effect
    assert "judge.code" in warnings[0]


def test_a_finished_stage_is_stale_after_an_edit_of_the_code_that_its_recipe_names(module: Path, monkeypatch):
    monkeypatch.chdir(module.parent)
    recipe = module.with_name("ppo.yaml")
    recipe.write_text("model: {class_path: PPO, init_args: {reward: 'edited_rewards:score'}}\n")
    config = (f"--config={recipe}",)
    trained = Stage("ppo", "ppo", ("fit",), recipe, config, (), Path("ppo/model"))
    asked = Stage(
        "pairs", "pairs", ("preferences",), None, ("--judge", "edited_rewards.Judge"), (), Path("pairs.jsonl")
    )
    plain = Stage("sft", "sft", ("generate",), None, ("--judge", "sandbox"), (), Path("out.jsonl"))
    before = [stage.fingerprint() for stage in (trained, asked, plain)]
    module.write_text(module.read_text().replace("0.0", "1.0"))
    after = [stage.fingerprint() for stage in (trained, asked, plain)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True]
