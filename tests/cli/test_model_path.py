"""What verbs take for a model, and the line they say when there is none."""

import os
import re

import pytest

from align.cli.model_path import model_directory


@pytest.fixture
def run(tmp_path):
    """A pipeline's folder with the stages dpo and sft."""
    for stage in ("dpo", "sft"):
        (tmp_path / "run" / stage / "model").mkdir(parents=True)
        (tmp_path / "run" / stage / "model" / "config.json").write_text("{}")
        (tmp_path / "run" / stage / "checkpoints").mkdir()
    (tmp_path / "run" / "data").mkdir()
    return tmp_path / "run"


def test_a_model_directory_and_its_stage_are_both_welcome(run):
    assert model_directory(run / "sft" / "model") == run / "sft" / "model"
    assert model_directory(str(run / "sft")) == run / "sft" / "model"


def test_a_model_that_was_being_replaced_is_found(run):
    """Killed between the two renames of a replacement, a stage leaves its model beside its place."""
    (run / "sft" / "model").rename(run / "sft" / f".model.{os.getpid()}.old")
    assert model_directory(run / "sft") == run / "sft" / "model"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "RUN holds no model: looked for RUN/config.json and RUN/model/config.json; "
             "a stage's folder such as RUN/dpo or RUN/sft has one"),
        ("sft/checkpoints", "looked for RUN/sft/checkpoints/config.json and RUN/sft/checkpoints/model/config.json; "
                            "did you mean RUN/sft/model?"),
        ("data", "RUN/data holds no model: looked for RUN/data/config.json and RUN/data/model/config.json"),
        ("sft/model/config.json", "is a file, not a model directory"),
        ("sft/modell", "no such model directory"),
    ],
)  # fmt: skip
def test_what_is_no_model(run, place, message):
    with pytest.raises(FileNotFoundError, match=re.escape(message.replace("RUN", str(run)))):
        model_directory(run / place)
