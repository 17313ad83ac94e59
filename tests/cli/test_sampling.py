"""Sampling flags that are left out are the model's own."""

import json
from pathlib import Path

import pytest
from naming import naming

from align.cli.errors import UsageError
from align.cli.generate import GenerateSettings
from align.cli.sampling import SamplingFlags
from align.cli.settings import parse_settings
from align.generation.sampling_config import SamplingConfig


def model(folder: Path, **fields) -> Path:
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1} | fields))
    return folder


def test_a_model_decides_what_no_flag_does(tmp_path: Path):
    """Those that the file does not name, or names as null, are SamplingConfig's: 1 and no penalty."""
    directory = model(tmp_path, do_sample=True, temperature=0.6, top_k=20, top_p=0.9, repetition_penalty=None)
    config, note = SamplingFlags(top_p=0.5, max_new_tokens=7).resolve(directory)
    assert config == SamplingConfig(temperature=0.6, top_k=20, top_p=0.5, max_new_tokens=7)
    assert note is not None
    assert "temperature 0.6, top_k 20 " in note
    assert str(directory / "generation_config.json") in note


@pytest.mark.parametrize(
    "fields", [{}, {"do_sample": False, "temperature": 0.6}, {"do_sample": True}], ids=["none", "greedy", "unnamed"]
)
def test_without_sampling_settings_of_its_own(tmp_path: Path, fields):
    """A model that does not sample has a temperature that transformers would ignore."""
    assert SamplingFlags().resolve(model(tmp_path, **fields)) == (SamplingConfig(), None)


def test_a_directory_without_the_file(tmp_path: Path):
    assert SamplingFlags(temperature=0.0).resolve(tmp_path) == (SamplingConfig(temperature=0.0), None)


@pytest.mark.parametrize(("name", "value"), [("temperature", "hot"), ("top_p", 1.5), ("top_k", 2.5), ("top_k", True)])
def test_an_invalid_value_of_the_file_is_named(tmp_path: Path, name: str, value):
    directory = model(tmp_path, **{name: value})
    with pytest.raises(ValueError, match=naming("generation_config.json", name, value)):
        SamplingFlags().resolve(directory)
    assert SamplingFlags(**{name: 1}).resolve(directory).note is None


def test_flags_are_checked_before_a_model_is_read():
    with pytest.raises(UsageError, match=naming("top_p", 1.5)):
        parse_settings(GenerateSettings, "generate", ["nowhere", "--prompt", "a", "--top_p", "1.5"])
