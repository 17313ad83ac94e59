"""align.json: round trips, and errors for invalid manifests."""

import hashlib
import json
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import save_file

from align.io.manifest import read_manifest, scores_fingerprint, weights_fingerprint, write_manifest

WHOLE = {
    "stage": "sft",
    "recipe": "recipes/tiny/sft.yaml",
    "parent": {"directory": "runs/tiny/pretrain/model", "weights": "ab" * 32, "stage": None},
    "tokenizer": "cd" * 32,
    "data": {"sft.jsonl": "ef" * 32},
    "libraries": {"torch": "2.13"},
    "reward_mean": 0.5,
    "reward_std": 1.25,
}


def test_round_trip(tmp_path):
    write_manifest(tmp_path, WHOLE)
    assert read_manifest(tmp_path) == {"schema_version": 1, **WHOLE}


def test_defaults(tmp_path):
    """Only the stage is required; versions default to those in use."""
    write_manifest(tmp_path, {"stage": "pretrain"})
    manifest = read_manifest(tmp_path)
    assert manifest["libraries"].pop("torch") == version("torch")
    assert manifest["parent"] is None
    assert manifest["data"] == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": 3}, r"stage\D*3\b"),
        ({"parent": "runs/a"}, "parent.*'runs/a'"),
        ({"parent": {"directory": "runs/a"}}, r"parent.*\{'directory': 'runs/a'\}"),
        ({"parent": {"directory": "runs/a", "weights": 5}}, r"parent.*\{'directory': 'runs/a', 'weights': 5\}"),
        ({"parent": {}}, r"parent.*\{\}"),
        ({"data": {"a.jsonl": 5}}, r"data\.a\.jsonl\D*5\b"),
        ({"schema_version": 2}, r"schema_version\D*2\b.*\b1\b"),
        ({"schema_version": "1"}, "schema_version.*'1'"),
    ],
)
def test_wrong_fields(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"align\.json.*{message}"):
        write_manifest(tmp_path, WHOLE | change)
    assert not list(tmp_path.iterdir())
    (tmp_path / "align.json").write_text(json.dumps({"schema_version": 1} | WHOLE | change))
    with pytest.raises(ValueError, match=rf"align\.json.*{message}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_no_json_value(tmp_path, value):
    with pytest.raises(ValueError, match=r"align\.json.*JSON"):
        write_manifest(tmp_path, WHOLE | {"reward_mean": value})


def test_stage_is_required(tmp_path):
    with pytest.raises(ValueError, match=r"align\.json.*stage"):
        write_manifest(tmp_path, {"recipe": "a.yaml"})


def test_unreadable(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"align\.json"):
        read_manifest(tmp_path)
    (tmp_path / "align.json").write_text("{")
    with pytest.raises(ValueError, match=r"align\.json.*JSON"):
        read_manifest(tmp_path)
    (tmp_path / "align.json").write_text("[]")
    with pytest.raises(ValueError, match=r"align\.json.*list"):
        read_manifest(tmp_path)


def weights(directory, files):
    directory.mkdir()
    for file, tensors in files.items():
        save_file(tensors, directory / file)
    if len(files) > 1:
        places = {name: file for file, tensors in files.items() for name in tensors}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return weights_fingerprint(directory)


def test_fingerprint_by_hand(tmp_path):
    """Of one tensor a = [1, 2] in float32: sha256 of its name, type and shape as JSON, then of its eight bytes."""
    expected = hashlib.sha256(b'["a", "F32", [2]]' + bytes.fromhex("0000803f00000040")).hexdigest()
    assert weights(tmp_path / "m", {"model.safetensors": {"a": torch.tensor([1.0, 2.0])}}) == expected


def test_fingerprint_sees_weights_only(tmp_path):
    """Depends on name, dtype, shape and every value, not on the number or order of files."""
    a, b = torch.arange(6.0), torch.ones(3, dtype=torch.bfloat16)
    one = weights(tmp_path / "one", {"model.safetensors": {"a": a, "b": b}})
    shards = {"model-00001-of-00002.safetensors": {"b": b}, "model-00002-of-00002.safetensors": {"a": a}}
    assert weights(tmp_path / "two", shards) == one
    others = [{"a": a + 1, "b": b}, {"a": a.view(2, 3), "b": b}, {"a": a, "c": b}, {"a": a.int(), "b": b}, {"a": a}]
    prints = [weights(tmp_path / str(i), {"model.safetensors": tensors}) for i, tensors in enumerate(others)]
    assert len({one, *prints}) == 6


def test_the_normalisation_belongs_to_a_reward_models_identity(tmp_path):
    """Its scores differ by it; those of a model without one are identified by the weights alone."""
    save_file({"score.weight": torch.ones(1, 2)}, tmp_path / "model.safetensors")
    assert scores_fingerprint(tmp_path) == weights_fingerprint(tmp_path)
    write_manifest(tmp_path, {"stage": "reward"})
    assert scores_fingerprint(tmp_path) == weights_fingerprint(tmp_path)
    found = set()
    for mean, std in ((0.0, 1.0), (0.5, 1.0), (0.5, 2.0)):
        write_manifest(tmp_path, {"stage": "reward", "reward_mean": mean, "reward_std": std})
        found.add(scores_fingerprint(tmp_path))
    assert len(found) == 3
