"""Names that a card can show to others."""

from pathlib import Path

import pytest
import yaml

from align.io.manifest import write_manifest
from align.io.provenance import Origin, first_ancestor, front_matter, hub_datasets, origin_of

SNAPSHOT = "/home/me/.cache/huggingface/hub/models--owner--a-model/snapshots/0123abc"
NAMES = {
    "owner/a-model": Origin("a-model", "owner/a-model"),
    SNAPSHOT: Origin("a-model", "owner/a-model"),
    "/data/SmolLM2": Origin("SmolLM2", None),
    "runs/tiny/sft/model": Origin("sft", None),
    "/runs/tiny/dpo/adapter": Origin("dpo", None),
    "sft/model": Origin("sft", None),
}


@pytest.mark.parametrize(("source", "origin"), NAMES.items())
def test_names(source: str, origin: Origin):
    assert origin_of(source) == origin


def test_a_gguf_file_has_a_name_of_its_own(tmp_path: Path):
    write_manifest(tmp_path, {"stage": "foreign", "gguf": {"name": "Small", "file": "/x/small.Q8_0.gguf"}})
    assert origin_of(tmp_path) == Origin("Small", None)


def test_the_first_of_a_chain_of_stages(tmp_path: Path):
    """dpo <- sft <- a model of the Hub; without sft's folder the chain ends there."""
    sft = tmp_path / "sft/model"
    sft.mkdir(parents=True)
    write_manifest(sft, {"stage": "sft", "parent": {"directory": "owner/a-model", "weights": None}})
    parent = {"directory": str(sft), "weights": None}
    assert first_ancestor(parent) == Origin("a-model", "owner/a-model")
    (sft / "align.json").unlink()
    assert first_ancestor(parent) == Origin("sft", None)
    assert first_ancestor(None) is None


def test_front_matter():
    data = {"owner/data@main:train": "hub:owner/data@main:train@0123", "a/b": "ab" * 32}
    fields = {"license": None, "base_model": "owner/x", "datasets": hub_datasets(data), "tags": []}
    header = front_matter(fields)
    assert yaml.safe_load(header.strip("-")) == {"base_model": "owner/x", "datasets": ["owner/data"]}
