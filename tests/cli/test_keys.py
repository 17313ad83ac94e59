"""The messages are what jsonargparse really says (recorded); test_lightning.py drives the real parser."""

import json
from pathlib import Path

import pytest
import torch
from naming import names, naming

from align.cli.errors import UsageError, one_line
from align.cli.keys import explain, keep_nulls
from align.cli.lightning import make_cli
from align.pipeline.recipe_error import nearest

_ECHO = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path '{owner}':
        {problem}
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {{'class_path': '{owner}', 'init_args': {{'gpt': {{'layers': 'abc'}}}}}}"""


@pytest.mark.parametrize(
    ("problem", "named"),
    [
        ("Option 'z_los' is not accepted", ["model.init_args.z_los", "z_loss"]),
        ("Group 'gpt' does not accept option 'layrs'", ["model.init_args.gpt.layrs", "layers"]),
        (
            "Parser key \"gpt.layers\":\n          Expected a <class 'int'>. Got value: abc",
            ["model.init_args.gpt.layers", "int", "abc"],
        ),
    ],
)
def test_nested_problems_become_one_line(problem: str, named: list[str]):
    line = explain(_ECHO.format(owner="align.algorithms.Pretrain", problem=problem))
    assert names(line, *named)
    assert "\n" not in line


def test_wrong_class_names_the_nearest():
    problem = "module 'align.algorithms' has no attribute 'Pretran'"
    message = _ECHO.format(owner="align.algorithms.Pretran", problem=problem)
    assert names(explain(message), "model.class_path", "align.algorithms", "Pretran", "Pretrain")


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("Group 'trainer' does not accept option 'max_step'", ["trainer.max_step", "max_steps"]),
        ("unrecognized arguments: --trainer.max_stepss 3", ["trainer.max_stepss", "max_steps"]),
        ("Option 'checkpont.a' is not accepted", ["checkpont", "checkpoint"]),
        (
            "Parser key \"trainer.max_steps\":\n  Expected a <class 'int'>. Got value: many",
            ["trainer.max_steps", "int", "many"],
        ),
    ],
)
def test_flat_problems(message: str, named: list[str]):
    line = explain(message)
    assert names(line, *named)
    assert "\n" not in line


def test_nearest_says_nothing_when_nothing_is_alike():
    assert nearest("zzz", ["layers", "width"]) == ""


def test_a_bug_is_not_shortened():
    assert one_line(KeyError("x")) is None
    assert one_line(ValueError("two\nlines")) == "two lines"


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 8 GiB."),
            "CUDA out of memory",
        ),
        (RuntimeError("CUDA error: out of memory"), "CUDA error: out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "DefaultCPUAllocator: can't allocate memory: you tried",
        ),
        (MemoryError(), "memory"),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_takes_less(error: BaseException, first: str):
    line = one_line(error)
    assert line is not None
    assert names(line, first)
    assert "\n" not in line


def ppo(*words: str):
    """The model's settings in recipes/tiny/ppo.yaml with more of the command line."""
    recipe = Path(__file__).resolve().parents[2] / "recipes/tiny/ppo.yaml"
    return make_cli(["--config", str(recipe), *words], parse_only=True).config.model.init_args


def test_null_on_the_command_line_is_null():
    """At any depth, in both spellings, alone or inside a value; texts stay texts."""
    words = ["--model.init_args.scoring.reward_clip", "null", "--model.init_args.gold=null"]
    words += ['--model.init_args.kl={"kl_target": null, "kl_coef": 0.5}']
    settings = ppo(*words)
    assert settings.scoring.reward_clip is None
    assert settings.gold is None
    assert (settings.kl.kl_target, settings.kl.kl_coef) == (None, 0.5)
    assert settings.rollout.max_new_tokens == 96, "the recipe's"
    assert ppo("--model.init_args.gold", "None").gold == "None"


def test_only_nulls_below_init_args_are_rewritten():
    words = ["--trainer.max_epochs", "null", "--data.init_args.train", "a.jsonl", "--model.init_args.x.y=~"]
    assert keep_nulls(words) == [*words[:4], '--config={"model": {"init_args": {"x": {"y": null}}}}']
    assert keep_nulls(["--model.init_args.gold"]) == ["--model.init_args.gold"]


def test_null_for_a_group_of_settings_is_a_mistake():
    with pytest.raises(UsageError, match=naming("model.init_args.rollout", "null", "RolloutConfig")):
        ppo("--model.init_args.rollout", "null")
    assert ppo("--model.init_args.lora", "null").lora is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"checkpoint": None}, ["checkpoint"]),
        ({"checkpoint": {"keep_last": None}}, ["checkpoint.keep_last", "int"]),
        ({"samples": {"sampling": None}}, ["samples.sampling"]),
        ({"trainer": {"max_steps": None}}, ["trainer.max_steps", "int"]),
        ({"model": {"init_args": {"rollout": {"episodes": None}}}}, ["model.init_args.rollout.episodes", "int"]),
        ({"data": {"init_args": {"batch_size": None}}}, ["data.init_args.batch_size", "int"]),
        (
            {"model": {"init_args": {"estimator": {"class_path": "GAE", "init_args": {"lam": None}}}}},
            ["model.init_args.estimator.init_args.lam", "float"],
        ),
    ],
)
def test_null_in_a_recipe_is_a_mistake_where_a_setting_is_not_optional(given, named):
    """jsonargparse checks the type of null on the command line, and not in a file."""
    with pytest.raises(UsageError, match=naming("null", *named)):
        ppo(f"--config={json.dumps(given)}")


@pytest.mark.parametrize("flag", ["--samples.sampling", "--checkpoint", "--trainer"])
def test_null_for_a_group_of_the_run_is_a_mistake(flag: str):
    with pytest.raises(UsageError, match=naming(flag.removeprefix("--"), "null")):
        ppo(flag, "null")


def test_null_is_a_value_of_optional_settings_of_callbacks_and_trainer():
    recipe = Path(__file__).resolve().parents[2] / "recipes/tiny/ppo.yaml"
    words = ["--checkpoint.every_minutes=null", "--trainer.max_time", "null", "--samples.sampling.dtype=null"]
    config = make_cli(["--config", str(recipe), *words], parse_only=True).config
    assert (config.checkpoint.every_minutes, config.trainer.max_time, config.samples.sampling.dtype) == (None,) * 3


def test_null_for_a_variant_is_a_mistake():
    with pytest.raises(UsageError, match=naming("model.init_args.estimator", "null", "AdvantageEstimator")):
        ppo("--model.init_args.estimator", "null")


NULLS = {
    "data.init_args.context": int,  # of the base class of the data module
    "model.init_args.kl.kl_coef": float,
    "model.init_args.estimator.init_args.gamma": float,
}


@pytest.mark.parametrize(("key", "kind"), NULLS.items())
def test_null_for_a_number_is_a_mistake(key: str, kind: type):
    with pytest.raises(UsageError, match=naming(key, "null", kind.__name__)):
        ppo(f"--{key}", "null")


def test_a_key_of_the_base_class_is_suggested():
    """PromptData takes the settings that all data modules share as keyword arguments."""
    with pytest.raises(UsageError, match=naming("data.init_args.contex", "context")):
        ppo("--data.init_args.contex", "8")


def test_files_replace_the_recipes_held_out_share():
    recipe = Path(__file__).resolve().parents[2] / "recipes/instructions/sft.yaml"
    words = ["--data.init_args.validation", "x.jsonl", "--data.init_args.val_fraction", "null"]
    settings = make_cli(["--config", str(recipe), *words], parse_only=True).config.data.init_args
    assert (settings.validation, settings.val_fraction) == ("x.jsonl", None)


def test_a_file_that_a_setting_names_is_not_read_as_a_recipe(tmp_path: Path, monkeypatch):
    """Data that is YAML too: a list of records, a text; and a file named like a class."""
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text('[{"prompt": "2+2?"}, {"prompt": "3+3?"}]')
    Path("a.csv").write_text("prompt\n2+2?\n")
    Path("GAE").write_text("class_path: RLOO\n")
    recipe = Path(__file__).resolve().parents[2] / "recipes/tiny/ppo.yaml"
    words = ["--config", str(recipe), "--model.init_args.estimator", "GAE"]
    given = json.dumps({"data": {"init_args": {"train": "a.json"}}})
    config = make_cli([*words, f"--config={given}"], parse_only=True).config
    assert config.data.init_args.train == "a.json"
    assert config.model.init_args.estimator.class_path.endswith(".GAE")
    assert make_cli([*words, "--data.init_args.train", "a.csv"], parse_only=True).config.data.init_args.train == "a.csv"


OTHERS = {
    "model.init_args.lora.r": "rank",
    "model.init_args.learning_rate": "optimizer.lr",
    "model.init_args.kl_coef": "kl.kl_coef",
    "model.init_args.num_train_epochs": "trainer.max_epochs",
    "data.init_args.max_seq_length": "context",
}


@pytest.mark.parametrize(("key", "ours"), OTHERS.items())
def test_a_key_of_another_library_or_group_is_known(key: str, ours: str):
    with pytest.raises(UsageError, match=naming(key, ours)):
        ppo(f"--{key}", "8")
