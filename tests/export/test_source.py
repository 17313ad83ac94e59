"""Runs and checkpoints as sources, and what is refused."""

import csv
import json

import pytest
import torch
import yaml
from export_models import write_model
from naming import naming

from align.export.source import open_source
from align.io.directory import load_network


@pytest.fixture
def run(tmp_path, make):
    """A run folder: model/ of step 3, checkpoints of steps 10 and 20, a validation at each step."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    make("model").rename(folder / "model")
    state = load_network(folder / "model").state_dict()
    for step, name in ((10, "step=10"), (20, "last")):
        shifted = {f"network.{key}": value + step / 1000 for key, value in state.items()}
        stored = {"state_dict": shifted | {"value.score.weight": torch.zeros(1)}, "global_step": step, "callbacks": {}}
        torch.save(stored, folder / "checkpoints" / f"{name}.ckpt")
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "epoch", "val/loss", "policy/reward"])
        writer.writeheader()
        writer.writerows([
            {"step": 9, "epoch": 0, "val/loss": 1.2, "policy/reward": 0.5},
            {"step": 19, "epoch": 0, "val/loss": 1.4, "policy/reward": 0.9},
        ])  # fmt: skip
    recipe = {"model": {"class_path": "align.algorithms.SFT", "init_args": {"init_from": str(folder / "parent")}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def shift(source, run):
    """Difference of the weights from those of model/, in thousandths."""
    stored = load_network(run / "model").state_dict()["model.norm.weight"]
    return round((source.network.state_dict()["model.norm.weight"] - stored).mean().item() * 1000)


def test_a_run_is_its_model(run):
    assert shift(open_source(str(run)), run) == 0


def test_a_checkpoint_is_the_network_of_its_step(run):
    source = open_source(str(run / "checkpoints" / "last.ckpt"))
    assert shift(source, run) == 20
    assert source.origin.endswith("last.ckpt, step 20")
    assert (source.manifest["step"], source.manifest["metrics"]["val/loss"]) == (20, 1.4)
    assert source.manifest["stage"] == "sft"


@pytest.mark.parametrize(
    ("metric", "mode", "expected"),
    [("val/loss", "min", 10), ("val/loss", "max", 0), ("policy/reward", "max", 20), ("policy/reward", "min", 10)],
)
def test_the_best_by_a_metric(run, metric, mode, expected):
    """val/loss: model/ 1.5, step 10 1.2, step 20 1.4; model/ has no policy/reward."""
    assert shift(open_source(str(run), best=metric, mode=mode), run) == expected


def test_what_a_checkpoint_was_kept_for_counts_before_the_log(run):
    path = run / "checkpoints" / "last.ckpt"
    stored = torch.load(path, weights_only=True)
    stored["callbacks"] = {"ModelCheckpoint{...}": {"monitor": "val/loss", "current_score": torch.tensor(0.1)}}
    torch.save(stored, path)
    assert shift(open_source(str(run), best="val/loss"), run) == 20


def test_a_metric_that_nobody_logged(run):
    with pytest.raises(ValueError, match=naming("--best", "val/los", "policy/reward", "val/loss")):
        open_source(str(run), best="val/los")


def test_a_checkpoint_between_two_validations_has_no_value(run):
    (run / "metrics.csv").write_text("step,policy/kl\n4,0.5\n")
    with pytest.raises(ValueError, match=naming("policy/kl", "last.ckpt", 20, "step=10.ckpt")):
        open_source(str(run), best="policy/kl", mode="max")


def test_without_a_model_the_recipe_tells_the_shape(run, tokenizer):
    (run / "model").rename(run / "parent")
    source = open_source(str(run / "checkpoints" / "last.ckpt"))
    assert source.manifest["parent"]["directory"] == str(run / "parent")
    assert source.tokenizer.fingerprint == tokenizer.fingerprint


# What is wrong.


def test_a_run_without_a_model(run, tmp_path):
    (run / "model").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=naming(run, "model/config.json", "step=10.ckpt", "--best")):
        open_source(str(run))
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=naming(run, "model/config.json")):
        open_source(str(run))
    (run / "checkpoints").rmdir()
    with pytest.raises(ValueError, match=naming(run, "model/", "checkpoints/")):
        open_source(str(run))


def test_a_checkpoint_cut_in_half(run):
    path = run / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=naming(path, path.stat().st_size)):
        open_source(str(path))


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=naming(tmp_path / "notes.ckpt", 5)):
        open_source(str(tmp_path / "notes.ckpt"))
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=naming(tmp_path / "other.ckpt", "state_dict", "Lightning")):
        open_source(str(tmp_path / "other.ckpt"))
    torch.save({"state_dict": {"net.w": torch.zeros(1)}, "global_step": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=naming(tmp_path / "other.ckpt", "state_dict", "net", "network.*")):
        open_source(str(tmp_path / "other.ckpt"))


def test_a_checkpoint_away_from_its_run(run, tmp_path):
    alone = tmp_path / "alone" / "last.ckpt"
    alone.parent.mkdir()
    (run / "checkpoints" / "last.ckpt").rename(alone)
    with pytest.raises(ValueError, match=naming(alone)):
        open_source(str(alone))


def test_a_checkpoint_of_another_shape(run, tokenizer, make):
    for path in (run / "model").iterdir():
        path.unlink()
    write_model(run / "model", load_network(make("wide", width=64)), tokenizer)
    with pytest.raises(ValueError, match=naming("network.model.embed_tokens.weight", "[405, 32]", "[405, 64]")):
        open_source(str(run / "checkpoints" / "last.ckpt"))


def test_a_directory_that_is_not_ours(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.png").touch()
    with pytest.raises(ValueError, match=naming(tmp_path / "photos", "model/", "checkpoints/")):
        open_source(str(tmp_path / "photos"))
    with pytest.raises(ValueError, match=naming(run)):
        open_source(str(run.parent))
    with pytest.raises(FileNotFoundError, match=naming(tmp_path / "nowhere")):
        open_source(str(tmp_path / "nowhere"))


def test_settings_that_belong_to_another_source(run):
    with pytest.raises(ValueError, match=naming("--best")):
        open_source(str(run / "model"), best="val/loss")
    with pytest.raises(ValueError, match=naming("--base", "adapter_config.json")):
        open_source(str(run), base="x")


def test_a_foreign_model_is_a_source(make):
    model = make()
    (model / "align.json").unlink()
    assert open_source(str(model)).manifest["stage"] == "foreign"
    (model / "config.json").write_text(json.dumps({"model_type": "phi3"}))
    with pytest.raises(ValueError, match=naming("model_type", "phi3")):
        open_source(str(model))
