"""Every setting of every stage has a declared behaviour on resuming, and is treated by it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from naming import naming

from align.training.resume import (
    changes_of_training,
    describe_changes,
    flat_settings,
    refuse_changes,
    settings_changes,
)
from align.training.resume_rules import Behaviour, rule_of

ROOT = Path(__file__).resolve().parents[2]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resume_table", ROOT / "tools/resume_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


walked = _load()


def test_every_setting_has_a_rule_and_every_rule_a_setting():
    """Declare new settings in align/training/resume_rules.py."""
    assert walked.undeclared() == []
    assert walked.without_setting() == []


def test_the_walk_finds_groups_variants_and_what_constructors_pass_on():
    found = walked.walk_settings()
    assert {"DPO", "PPO", "Pretrain", "Reward", "SFT"} <= found["model.optimizer.betas"]
    assert "DPO" in found["model.loss.beta"], "a field of a preference loss"
    assert {"ChatData", "TextData"} <= found["data.workers"], "of the base class"
    assert {"trainer.max_steps", "checkpoint.keep_last", "average.decay", "seed_everything"} <= found.keys()
    assert "model.value.lr_factor" in found, "of an optional group"


def test_the_page_is_current():
    """``python tools/resume_table.py`` writes it."""
    assert walked.page_with(walked.table()) == walked.PAGE.read_text()


def test_each_setting_is_treated_by_its_rule():
    """Changed from 1 to 2: named with both values by an error, a warning, or the line of changes that take effect."""
    for key in walked.walk_settings():
        rule = rule_of(key)
        assert rule is not None
        changes = settings_changes({key: 1, "same": 0}, {key: 2, "same": 0})
        if rule.behaviour == Behaviour.REFUSED and not rule.by_content:
            with pytest.raises(ValueError, match=naming("last.ckpt", key, 1, 2)):
                refuse_changes(changes, "last.ckpt")
            continue
        refuse_changes(changes, "last.ckpt")
        effect, warnings = describe_changes(changes)
        assert effect == (f"{key} 1 -> 2" if rule.behaviour == Behaviour.EFFECT else ""), key
        assert [line.partition(" (")[0] for line in warnings] == ([] if effect else [f"{key} 1 -> 2"]), key


def test_a_setting_without_a_rule_is_refused():
    """Such as one of a stage or a data module of the user's own."""
    assert rule_of("model.init_args.invented") is None
    with pytest.raises(ValueError, match=naming("model.init_args.invented", "null", "x")):
        refuse_changes(settings_changes({}, {"model.init_args.invented": "x"}), "last.ckpt")


def test_another_stage_is_named_without_its_settings():
    before = {"model.class_path": "align.algorithms.SFT", "model.init_args.z_loss": 0.0}
    now = {"model.class_path": "align.algorithms.DPO", "model.init_args.sft_coef": 0.0}
    with pytest.raises(ValueError, match=naming("align.algorithms.DPO", "align.algorithms.SFT")) as error:
        refuse_changes(settings_changes(before, now), "last.ckpt")
    assert "sft_coef" not in str(error.value)


def test_settings_are_flat_json_values():
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "a.B",
            "init_args": {"betas": (0.9, 0.95), "loss": {"class_path": "c.D"}, "value": None},
        },
        "trainer": {"callbacks": [{"class_path": "e.F"}], "default_root_dir": Path("runs")},
    }
    assert flat_settings(config) == {
        "seed_everything": 0,
        "model.class_path": "a.B",
        "model.init_args.betas": [0.9, 0.95],
        "model.init_args.loss.class_path": "c.D",
        "model.init_args.value": None,
        "trainer.callbacks": [{"class_path": "e.F"}],
        "trainer.default_root_dir": "runs",
    }


def test_an_optional_group_that_is_set_is_a_change_of_each_of_its_settings():
    before = flat_settings({"model": {"init_args": {"value": None}}})
    now = flat_settings({"model": {"init_args": {"value": {"shared_trunk": False, "lr_factor": 1.0}}}})
    with pytest.raises(ValueError, match=naming("model.init_args.value.shared_trunk", "null", "false")):
        refuse_changes(settings_changes(before, now), "last.ckpt")


def test_what_the_manifest_records():
    """What touches the training and takes effect; neither a moved folder nor another cadence of checkpoints."""
    before = {"trainer.max_steps": 4, "checkpoint.keep_last": 2, "model.init_args.compile": False}
    now = {"trainer.max_steps": 8, "checkpoint.keep_last": 3, "model.init_args.compile": True}
    changes = changes_of_training(settings_changes(before, now))
    assert [(change.key, change.before, change.now) for change in changes] == [("trainer.max_steps", 4, 8)]
