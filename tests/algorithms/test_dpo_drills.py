"""Failures of DPO: each is an error or a warning, or is recovered from."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from dpo_pairs import CONFIG, Log, World, fit, policy, write_pairs

from align.algorithms.dpo import DPO
from align.algorithms.reference_logprobs import cache_file, read_cache, write_cache
from align.model.config import GPTConfig
from align.model.gpt import GPT


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_chosen_equals_rejected(world):
    Path(world.train).write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}) + "\n")
    with pytest.raises(ValueError, match=r"train\.jsonl.*\b1\b.*chosen.*rejected"):
        fit(world.stage(), world.data())


def test_a_reference_that_is_not_the_initial_policy_is_refused(world):
    other = world.save(policy(2), "other")
    with pytest.raises(ValueError, match=r"step 0\b.*0\.6931.*/other\b.*other_reference"):
        fit(world.stage(reference=other), world.data())


def test_a_reference_that_is_not_the_initial_policy_may_be_allowed_with_a_warning(world):
    log = Log()
    other = world.save(policy(2), "other")
    with pytest.warns(UserWarning, match=r"step 0\b.*0\.6931.*/other\b.*other_reference"):
        fit(world.stage(reference=other, other_reference=True), world.data(), callbacks=[log])
    assert abs(log.steps[0]["train/margin"]) > 0.01


def test_a_reference_of_another_vocabulary_is_refused(world):
    small = world.save(GPT(GPTConfig(**CONFIG.to_dict() | {"vocab_size": 264})), "small")
    with pytest.raises(ValueError, match=r"vocab_size.*\b264\b.*\b263\b"):
        fit(world.stage(reference=small, reference_logprobs="on_the_fly"), world.data())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sft_coef": -1}, "sft_coef.*-1"),
        ({"reference_logprobs": "never"}, "reference_logprobs.*'never'"),
        ({"init_from": None}, "DPO.*init_from"),
        ({"network": GPT(CONFIG)}, "DPO.*init_from"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DPO(**{"init_from": "somewhere"} | settings)


def test_precomputing_needs_numbered_pairs(world):
    class Plain(pl.LightningDataModule):
        def train_dataloader(self):
            return torch.utils.data.DataLoader([1], batch_size=None)

    with pytest.raises(ValueError, match=r"reference_logprobs.*PreferenceData.*Plain.*on_the_fly"):
        fit(world.stage(), Plain())


def test_nan_stops(world):
    network = policy()
    network.output_weight.data.fill_(float("nan"))
    with pytest.raises((FloatingPointError, ValueError), match="nan"):
        fit(world.stage(network=network, reference_logprobs="on_the_fly"), world.data(), limit_val_batches=0)


# Resuming.


class Saved(pl.Callback):
    """Keeps a checkpoint of an optimizer step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("reference_logprobs", ["precomputed", "on_the_fly"])
def test_resuming_within_an_epoch_is_bitwise_identical(world, tmp_path, reference_logprobs):
    """Two epochs of three steps, resumed after the second or the fourth step: the same weights in the end."""
    whole = world.stage(reference_logprobs=reference_logprobs)
    saved = [Saved(step, tmp_path / f"{step}.ckpt") for step in (2, 4)]
    fit(whole, world.data(), max_epochs=2, callbacks=saved)
    for step in (2, 4):
        resumed = world.stage(reference_logprobs=reference_logprobs)
        trainer = fit(resumed, world.data(), max_epochs=2, ckpt_path=str(tmp_path / f"{step}.ckpt"))
        assert trainer.global_step == 6
        for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
            assert torch.equal(a, b)


# The cache.


def cached(world) -> set[str]:
    return {path.name for path in (world.folder / "cache").glob("reference-*")}


def test_the_cache_is_reused(world):
    """The second run reads the log-probs from disk: its stage cannot compute them."""
    fit(world.stage(), world.data())
    names = cached(world)
    assert len(names) == 2  # of the training and of the validation pairs
    stage = world.stage()
    stage._make_reference = None
    fit(stage, world.data(batch_size=3))
    assert cached(world) == names
    assert not list((world.folder / "cache").glob(".*"))


def test_other_data_tokenizer_or_weights_make_another_cache(world):
    fit(world.stage(), world.data(), max_steps=1, limit_val_batches=0)
    seen = [cached(world)]

    def run(**settings):
        fit(world.stage(**settings), world.data(), max_steps=1, limit_val_batches=0)
        seen.append(cached(world))

    write_pairs(Path(world.train), 12, better="nope")
    run()
    path = world.folder / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tokenizer))
    run()
    run(reference=world.save(policy(2), "other"), other_reference=True)
    assert [len(names) for names in seen] == [1, 2, 3, 4]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[len(content) // 2] ^= 1
    elif how == "empty":
        content = bytearray()
    elif how == "short":
        write_cache(path, np.zeros((3, 2)))
        return
    else:
        values = read_cache(path, 12)
        values[3] = np.nan
        write_cache(path, values)
        return
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "short", "nan"])
def test_a_damaged_cache_is_recomputed_with_a_warning(world, how):
    fit(world.stage(), world.data(), max_steps=1, limit_val_batches=0)
    (path,) = (world.folder / "cache").glob("reference-*")
    good = read_cache(path, 12)
    damage(path, how)
    with pytest.warns(UserWarning, match=path.name):
        fit(world.stage(), world.data(), max_steps=1, limit_val_batches=0)
    np.testing.assert_array_equal(read_cache(path, 12), good)


def test_a_cache_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        write_cache(tmp_path / "reference-1.npz", np.zeros((1, 2)))
    assert list(tmp_path.iterdir()) == []


def test_the_cache_knows_its_version_and_its_key(tmp_path):
    path = cache_file(tmp_path, data="a", weights="b")
    assert path == cache_file(tmp_path, weights="b", data="a")
    assert path != cache_file(tmp_path, data="a", weights="c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_cache(path, 3) is None


# Two processes.

SCRIPT = """
import sys
from pathlib import Path

import torch

sys.path.insert(0, {here!r})
from dpo_pairs import World, fit
from align.algorithms.policy_evaluation import PolicyEvaluationConfig

ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
world = World.__new__(World)
world.folder, world.train, world.validation = folder, str(folder / "train.jsonl"), str(folder / "val.jsonl")
world.start = str(folder / "start")
stage = world.stage(policy_evaluation=PolicyEvaluationConfig(prompts=5, max_new_tokens=4))
data = world.data(batch_size=6 // ranks, cache_dir=folder / f"cache{{ranks}}")
trainer = fit(stage, data, strategy="ddp" if ranks == 2 else "auto", devices=ranks)
if trainer.is_global_zero:
    metrics = {{k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")}}
    result = [stage.network.state_dict(), stage._tables["train"], metrics, set(trainer.callback_metrics)]
    torch.save(result, folder / f"{{ranks}}.pt")
"""


@pytest.mark.slow
def test_two_ranks_equal_one(world, tmp_path):
    """Each rank computes its share of the reference log-probs; weights and metrics equal those of one process."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    results = []
    for ranks in (1, 2):
        subprocess.run([sys.executable, str(script), str(ranks), str(tmp_path)], check=True, timeout=250, cwd=tmp_path)
        results.append(torch.load(tmp_path / f"{ranks}.pt", weights_only=True))
    one, two = results
    for name, weight in one[0].items():
        torch.testing.assert_close(two[0][name], weight, rtol=1e-3, atol=1e-4, msg=name)
    torch.testing.assert_close(two[1], one[1], rtol=0, atol=1e-4)
    for name, value in one[2].items():
        torch.testing.assert_close(two[2][name], value, rtol=1e-3, atol=1e-3, msg=name)
    assert "policy/kl" in two[3]
