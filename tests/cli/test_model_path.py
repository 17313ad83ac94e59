"""What verbs take for a model, and the line they say when there is none."""

import os

import pytest
from naming import names, naming

from align.cli.model_path import model_directory
from align.io.location import locate


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


@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_is_named_as_one(tmp_path, beside):
    """One of a stage has the merged weights beside it."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    if beside:
        (tmp_path / "model").mkdir()
        (tmp_path / "model/config.json").write_text("{}")
    for find in (model_directory, locate):
        with pytest.raises(FileNotFoundError, match=naming(adapter, f"align export {adapter} --out DIR")) as caught:
            find(adapter)
        assert names(str(caught.value), tmp_path / "model") == beside


def test_a_model_that_was_being_replaced_is_found(run):
    """Killed between the two renames of a replacement, a stage leaves its model beside its place."""
    (run / "sft" / "model").rename(run / "sft" / f".model.{os.getpid()}.old")
    assert model_directory(run / "sft") == run / "sft" / "model"


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("", ["config.json", "model/config.json", "dpo", "sft"]),
        ("sft/checkpoints", ["sft/checkpoints/config.json", "sft/checkpoints/model/config.json", "sft/model"]),
        ("data", ["data/config.json", "data/model/config.json"]),
        ("sft/model/config.json", ["sft/model/config.json"]),
        ("sft/modell", ["sft/modell"]),
    ],
)
def test_what_is_no_model(run, place, named):
    with pytest.raises(FileNotFoundError, match=naming(*(run / path for path in named))):
        model_directory(run / place)
