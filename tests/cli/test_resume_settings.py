"""A run that is resumed after its recipe, its start or its checkpoint changed; and who may write into its folder."""

import csv
import json
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from naming import error_line, names
from safetensors.torch import load_file, save_file

from align.cli import main
from align.cli.lightning import _rows_of_all_ranks
from align.training.optimization import ScheduleConfig


def weights(folder: Path) -> bytes:
    return (folder / "model/model.safetensors").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, apart from locks and TensorBoard's."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if "tensorboard" not in p.parts}


@pytest.fixture(scope="module")
def fit(recipes: Path, run: Path):
    """``fit(folder, *words)``: six steps of SFT into ``folder``, every checkpoint kept."""

    def command(folder: Path, *words: str, verb: str = "fit", recipe: str = "sft") -> int:
        common = [verb, "--config", str(recipes / f"{recipe}.yaml"), "--run", str(run), "--samples.prompts=[]"]
        common += [f"--trainer.default_root_dir={folder}", "--checkpoint.save_top_k=-1", "--trainer.logger=false"]
        return main([*common, "--checkpoint.every_n_train_steps=2", *words])

    return command


@pytest.fixture(scope="module")
def start(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what SFT starts from."""
    return Path(shutil.copytree(run / "pretrain/model", tmp_path_factory.mktemp("start") / "model"))


@pytest.fixture(scope="module")
def finished(fit, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "sft"
    assert fit(folder, f"--model.init_args.init_from={start}") == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's folder, to resume in."""
    return Path(shutil.copytree(finished, tmp_path / "sft"))


def step(folder: Path, number: int) -> str:
    return f"--ckpt_path={folder}/checkpoints/epoch=0-step={number}.ckpt"


def test_settings_that_decide_the_result_are_refused(fit, folder: Path, start: Path, capsys):
    before = contents(folder)
    words = [f"--model.init_args.init_from={start}", step(folder, 4)]
    assert fit(folder, *words, "--model.init_args.z_loss=0.5", "--trainer.accumulate_grad_batches=2") == 2
    line = error_line(capsys, "model.init_args.z_loss", 0.5, 0.0, folder / "checkpoints/epoch=0-step=4.ckpt")
    assert names(line, "trainer.accumulate_grad_batches", 2, 1)
    assert contents(folder) == before


def test_what_is_reported_changes_no_bit_of_the_weights(fit, folder: Path, start: Path, finished: Path, capsys):
    """Another share of the validation data and a moved start: the last weights are those of the uninterrupted run."""
    moved = start.with_name("moved")
    shutil.copytree(start, moved, dirs_exist_ok=True)
    words = [f"--model.init_args.init_from={moved}", "--trainer.limit_val_batches=1"]
    assert fit(folder, *words, step(folder, 4)) == 0
    error = capsys.readouterr().err
    assert names(error, "warning", "trainer.limit_val_batches", "2 -> 1")
    assert names(error, "warning", "model.init_args.init_from", f"{start} -> {moved}")
    ours, theirs = (
        torch.load(path / "checkpoints/epoch=0-step=6.ckpt", weights_only=True)["state_dict"]
        for path in (folder, finished)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_longer_run_says_how_the_learning_rate_jumps(fit, folder: Path, start: Path, capsys, recwarn):
    """Cosine to 0.05 of 1e-3 over 6 steps, then over 8: 5e-5 at the end of the first, factor(6, 8) in the second."""
    schedule = ScheduleConfig(kind="cosine", warmup_steps=1, final_factor=0.05)
    shutil.rmtree(folder / "model")
    words = [f"--model.init_args.init_from={start}", "--ckpt_path=last", "--trainer.max_steps=8"]
    assert fit(folder, *words, "--model_directory.which=last") == 0
    assert names(capsys.readouterr().err, "changed settings", "trainer.max_steps 6 -> 8")
    told = " ".join(str(warning.message) for warning in recwarn)
    assert names(told, "6 -> 8", f"5e-05 -> {1e-3 * schedule.factor(6, 8):.6g}")
    manifest = json.loads((folder / "model/align.json").read_text())
    changed = {"trainer.max_steps": [6, 8], "model_directory.which": ["best", "last"]}
    assert manifest["resumed"] == [{"step": 6, "changed": changed}]
    stored = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert stored["global_step"] == 8
    assert stored["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-3 * schedule.factor(8, 8))


def test_a_start_that_was_trained_again_in_place_is_refused(fit, folder: Path, start: Path, tmp_path: Path, capsys):
    other = tmp_path / "other"
    shutil.copytree(start, other)
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    before = contents(folder)
    assert fit(folder, f"--model.init_args.init_from={other}", step(folder, 4)) == 1
    error_line(capsys, "model.init_args.init_from", other)
    assert contents(folder) == before


def test_a_copy_of_the_data_is_the_same_and_another_order_is_not(fit, folder: Path, start: Path, run: Path, capsys):
    lines = (run / "data/sft_train.jsonl").read_text().splitlines(keepends=True)
    copy, turned = folder / "copy.jsonl", folder / "turned.jsonl"
    copy.write_text("".join(lines))
    turned.write_text("".join(reversed(lines)))
    words = [f"--model.init_args.init_from={start}", step(folder, 4)]
    assert fit(folder, *words, f"--data.init_args.train={copy}") == 0
    assert names(capsys.readouterr().err, "warning", "data.init_args.train", copy)
    assert fit(folder, *words, f"--data.init_args.train={turned}") == 1
    line = error_line(capsys, "checkpoint")
    assert line.count("ChatData-") == 2, "the identities of both"


def test_ppo_takes_another_kl_coefficient_and_refuses_another_normalisation(
    fit, run: Path, tmp_path: Path, monkeypatch, capsys
):
    """Two iterations of two steps; the second has another coefficient and an edited gold reward, and says so."""
    folder, reward, gold = tmp_path / "ppo", tmp_path / "reward", tmp_path / "golden.py"
    gold.write_text("def score(prompts, responses):\n    return [0.0] * len(responses)\n")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(run / "reward/model", reward)
    words = [f"--model.init_args.reward={reward}", "--trainer.max_epochs=2", "--trainer.logger=true"]
    words += [
        "--trainer.log_every_n_steps=1",
        "--checkpoint.every_n_train_steps=1",
        "--model.init_args.gold=golden:score",
    ]
    assert fit(folder, *words, recipe="ppo") == 0
    resumed = [*words, f"--ckpt_path={folder}/checkpoints/epoch=0-step=2.ckpt"]
    gold.write_text(gold.read_text() + "# edited\n")
    assert fit(folder, *resumed, "--model.init_args.kl.kl_coef=0.25", recipe="ppo") == 0
    told = capsys.readouterr().err
    assert names(told, "model.init_args.kl.kl_coef 0.1 -> 0.25")
    assert names(told, "warning", "model.init_args.gold.code")
    with (folder / "metrics.csv").open(newline="") as file:
        logged = [float(row["rollout/kl_coef"]) for row in csv.DictReader(file) if row["rollout/kl_coef"]]
    assert logged == pytest.approx([0.1, 0.25])
    assert fit(folder, *resumed, "--model.init_args.scoring.reward_clip=1.0", recipe="ppo") == 2
    error_line(capsys, "model.init_args.scoring.reward_clip", 1.0, 3.0)
    manifest = json.loads((reward / "align.json").read_text())
    (reward / "align.json").write_text(json.dumps(manifest | {"reward_mean": manifest["reward_mean"] + 1}))
    assert fit(folder, *resumed, recipe="ppo") == 1
    error_line(capsys, "model.init_args.reward", reward)


def test_a_checkpoint_of_another_stage_is_refused(fit, finished: Path, tmp_path: Path, capsys):
    assert fit(tmp_path / "dpo", step(finished, 4), recipe="dpo") == 2
    error_line(capsys, "align.algorithms.DPO", "align.algorithms.SFT", "init_from")
    assert not (tmp_path / "dpo").exists()


def test_a_checkpoint_without_settings_is_reported(fit, folder: Path, start: Path, capsys):
    """Such as one that a script of the user's saved: only stage and contents are compared."""
    file = folder / "checkpoints/epoch=0-step=4.ckpt"
    stored = torch.load(file, weights_only=True)
    del stored["settings"]
    torch.save(stored, file)
    assert fit(folder, f"--model.init_args.init_from={start}", step(folder, 4)) == 0
    assert names(capsys.readouterr().err, "warning", file, "settings")


def test_a_finished_run_says_so_and_writes_a_model_that_was_deleted(fit, folder: Path, start: Path, capsys):
    shutil.rmtree(folder / "model")
    words = [f"--model.init_args.init_from={start}", "--ckpt_path=last"]
    assert fit(folder, *words) == 0
    assert names(capsys.readouterr().err, "finished", "step 6", folder / "model", "trainer.max_steps")
    stored = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    written = load_file(folder / "model/model.safetensors")
    assert torch.equal(written["model.norm.weight"], stored["network.model.norm.weight"])
    before = contents(folder)
    assert fit(folder, *words) == 0
    assert contents(folder) == before


def test_a_finished_run_of_another_folder_is_refused(fit, finished: Path, start: Path, tmp_path: Path, capsys):
    words = [f"--model.init_args.init_from={start}", f"--ckpt_path={finished}/checkpoints/last.ckpt"]
    assert fit(tmp_path / "new", *words) == 2
    error_line(capsys, finished / "checkpoints/last.ckpt", "step 6", "trainer.max_steps 6")
    assert fit(tmp_path / "new", *words, "--trainer.max_steps=4") == 2
    error_line(capsys, "trainer.max_steps", 4, "step 6")


@pytest.mark.parametrize("setting", ["limit_train_batches=0", "max_epochs=0", "max_steps=0"])
def test_a_run_without_a_step_is_a_mistake(fit, tmp_path: Path, capsys, setting: str):
    assert fit(tmp_path / "out", f"--trainer.{setting}") == 2
    error_line(capsys, setting.replace("=", " ") if "limit" in setting else f"trainer.{setting.partition('=')[0]}", 0)
    assert not (tmp_path / "out/model").exists()


def test_a_branch_in_a_new_folder_ends_with_a_model(fit, finished: Path, start: Path, tmp_path: Path):
    """From step 4, after the best validation so far: the new folder gets the network of its own next validation."""
    words = [f"--model.init_args.init_from={start}", step(finished, 4)]
    assert fit(tmp_path / "new", *words) == 0
    manifest = json.loads((tmp_path / "new/model/align.json").read_text())
    assert manifest["step"] == 6
    assert "resumed" not in manifest


def test_other_verbs_leave_the_files_of_the_training(fit, folder: Path, run: Path):
    before = contents(folder)
    for verb in ("validate", "test", "predict"):
        assert fit(folder, f"--data.init_args.test={run}/data/sft_val.jsonl", verb=verb) == 0
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before
    new = {name.partition("/")[0] for name in after.keys() - before.keys()}
    assert new == {"validate", "test", "predict", "predictions.jsonl"}


def test_fast_dev_run_leaves_the_folder_alone(fit, folder: Path):
    (folder / "health.jsonl").write_text('{"step": 3}\n')
    before = contents(folder)
    assert fit(folder, "--trainer.fast_dev_run=true", "--samples.prompts=[Tell]") == 0
    assert contents(folder) == before


def test_predictions_of_two_ranks_are_numbered_over_both(monkeypatch):
    """Seven rows, two at a time on each rank, in strided slices: 0 2 | 4 6 and 1 3 | 5."""
    ranks: list[Any] = [[[{"n": 0}, {"n": 2}], [{"n": 4}, {"n": 6}]], [[{"n": 1}, {"n": 3}], [{"n": 5}]]]

    def gather(found, own):
        assert own == (1, ranks[1])
        found[:] = list(enumerate(ranks))

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    module = SimpleNamespace(sharing=SimpleNamespace(rank=1))
    trainer: Any = SimpleNamespace(world_size=2, is_global_zero=True, lightning_module=module)
    assert _rows_of_all_ranks(trainer, ranks[1]) == [{"n": n} for n in range(7)]
    trainer.is_global_zero = False
    assert _rows_of_all_ranks(trainer, ranks[1]) is None


def test_a_full_disk_while_a_checkpoint_is_written_keeps_the_old_one(fit, folder: Path, start: Path, capsys):
    """Files may have 0.5 MB, which the model has and the checkpoint, with two moments, has not."""
    last = folder / "checkpoints/last.ckpt"
    before, size = last.read_bytes(), (folder / "model/model.safetensors").stat().st_size
    assert size < 500_000 < len(before)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        assert fit(folder, f"--model.init_args.init_from={start}", "--ckpt_path=last", "--trainer.max_steps=10") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error_line(capsys, folder / "checkpoints", "File too large")
    assert last.read_bytes() == before
    assert not list((folder / "checkpoints").glob(".*"))
