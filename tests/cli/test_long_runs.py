"""A run that is asked to leave, one whose newest checkpoint is damaged, and two at once in one folder."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from naming import error_line, names

from align.callbacks.model_directory import ModelDirectory
from align.cli import main
from align.cli.lightning import AlignCLI
from align.pipeline.run_lock import run_lock
from align.training import preemption
from align.training.checkpoint_files import global_step


class Interrupt(Callback):
    """Ctrl-C while the run is being set up, before the handlers of checkpoints."""

    def setup(self, *_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)  # ended by the signal


class Terminate(Callback):
    """A signal to this process before a step."""

    def __init__(self, step: int = 3, name: str = "SIGTERM") -> None:
        self.step, self.number = step, getattr(signal, name)

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sft"


@pytest.fixture
def fit(recipes: Path, run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """``fit(*words)``: six steps of SFT into ``folder``."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    common = ["fit", "--config", str(recipes / "sft.yaml"), "--run", str(run), "--samples.prompts=[]"]
    common += [f"--trainer.default_root_dir={folder}"]
    yield lambda *words: main([*common, *words])
    preemption.forget()


def terminate(**settings) -> str:
    entry = {"class_path": "test_long_runs.Terminate", "init_args": settings}
    return f"--trainer.callbacks={json.dumps([entry])}"


def weights(folder: Path) -> bytes:
    return (folder / "model/model.safetensors").read_bytes()


def steps(folder: Path) -> list[str]:
    return [line.split(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]


def test_sigterm_writes_a_checkpoint_and_the_next_try_ends_in_the_same_bits(run, folder, fit, capsys):
    """Asked before step 4 of 6, it makes that step and leaves, between two checkpoints of the recipe's."""
    assert fit() == 0
    uninterrupted = steps(folder)
    assert fit(terminate(step=3), "--checkpoint.every_n_train_steps=100") == 0
    last = folder / "checkpoints/last.ckpt"
    assert names(capsys.readouterr().err, 4, last, "--ckpt_path last")
    assert json.loads((folder / "preempted.json").read_text()) == {"step": 4, "checkpoint": str(last)}
    assert global_step(last) == 4
    assert fit("--ckpt_path=last") == 0
    assert not (folder / "preempted.json").exists()
    assert weights(folder) == weights(run / "sft")
    assert steps(folder) == uninterrupted


def test_the_loggers_of_a_recipe_go_on_with_their_runs(run, folder, fit):
    """Left at step 4 of 6; each logger is one run, told of every step once, and metrics.csv comes besides."""
    import stand_in_loggers

    stand_in_loggers.TOLD.clear()
    kinds = ("WandbLogger", "MLFlowLogger")
    loggers = "--trainer.logger=" + json.dumps([{"class_path": f"stand_in_loggers.{kind}"} for kind in kinds])
    assert fit(loggers, terminate(step=3), "--trainer.log_every_n_steps=1") == 0
    assert fit(loggers, "--ckpt_path=last", "--trainer.log_every_n_steps=1") == 0
    assert json.loads((folder / "tracking.json").read_text()) == dict(zip(kinds, stand_in_loggers.TOLD, strict=True))
    told = dict(zip(kinds, stand_in_loggers.TOLD.values(), strict=True))
    assert [entry[1] for entry in told["WandbLogger"] if entry[0] == "begun"] == [None, "allow"]
    states = [entry[-1] for entry in told["MLFlowLogger"] if entry[0] == "status"]
    assert states == ["RUNNING", "failed", "KILLED", "RUNNING", "success"]
    for entries in told.values():
        assert [entry[1] for entry in entries if "train/loss" in entry] == list(range(6))
    with (folder / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == list("012345")
    assert not (folder / "tensorboard").exists()
    assert weights(folder) == weights(run / "sft")


def test_asked_at_the_last_step_a_run_just_ends(run, folder, fit):
    assert fit(terminate(step=5)) == 0
    assert not (folder / "preempted.json").exists()
    assert weights(folder) == weights(run / "sft")


def test_usr1_in_a_slurm_job_queues_it_again(folder, fit, tmp_path, monkeypatch, capsys):
    fake = tmp_path / "bin/scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert fit(terminate(step=1, name="SIGUSR1")) == 0
    assert names(capsys.readouterr().err, "SLURM", 4711)
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"


def test_ctrl_c_before_training_leaves_nothing_to_resume(folder, fit):
    entry = json.dumps([{"class_path": "test_long_runs.Interrupt"}])
    assert fit(f"--trainer.callbacks={entry}") == 130
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores it from then on
    assert not (folder / "preempted.json").exists()
    assert not list(folder.glob("checkpoints/*"))


def test_ctrl_c_at_the_last_step_ends_the_pipeline_after_the_stage(recipes, tmp_path, monkeypatch, capsys):
    """The stage is done, as at SIGTERM; no further one starts, and the exit code says why."""
    ended = ModelDirectory.on_train_end

    def interrupt(self, trainer, module):
        os.kill(os.getpid(), signal.SIGINT)
        ended(self, trainer, module)

    monkeypatch.setattr(ModelDirectory, "on_train_end", interrupt)
    command = ["run", str(recipes), "--out", str(tmp_path), "--json", "--to", "pretrain"]
    assert main(command) == 130
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["status"] for line in lines] == ["done", "done", "done"]
    preemption.forget()


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [(signal.SIGTERM, 0, ["done", "done", "preempted"]), (signal.SIGINT, 130, ["done", "done"])],
)
def test_a_pipeline_stops_after_a_stage_that_was_asked_to_exit(
    recipes, tmp_path, monkeypatch, capsys, number, code, told
):
    """The stage stays half done: the next `align run` resumes it and runs the stages after it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from align.callbacks.throughput import Throughput

    started = Throughput.on_train_batch_start

    def interrupt(self, trainer, *rest):
        if trainer.global_step == 2 and trainer.ckpt_path is None:
            os.kill(os.getpid(), number)
        started(self, trainer, *rest)

    monkeypatch.setattr(Throughput, "on_train_batch_start", interrupt)
    command = ["run", str(recipes), "--out", str(tmp_path), "--json", "--only", "data", "tokenizer", "pretrain"]
    assert main(command) == code
    status = [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()]
    assert status == told
    assert main(command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["status"] for line in lines] == ["up-to-date", "up-to-date", "done"]
    assert "resum" in lines[-1]["why"]


def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(run, folder, fit, capsys):
    assert fit("--checkpoint.every_n_train_steps=2") == 0
    last = folder / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    assert fit("--ckpt_path=last") == 0
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: "))
    assert names(warning, last, "last-1.ckpt")
    assert weights(folder) == weights(run / "sft")
    assert fit(f"--ckpt_path={folder}/checkpoints/none.ckpt") == 1
    error_line(capsys, f"{folder}/checkpoints/none.ckpt")
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    assert fit("--ckpt_path=last") == 1
    error_line(capsys, folder / "checkpoints", last, "last-1.ckpt")


@pytest.mark.parametrize(
    ("rank", "strategy", "found"),
    [(0, "align.training.ModelParallel", "last-1"), (1, "align.training.ModelParallel", "last"), (1, None, "last-1")],
    ids=["the first rank", "one that follows it", "one that loads by itself"],
)
def test_the_first_rank_alone_reads_shards(folder, monkeypatch, rank, strategy, found):
    """last.ckpt is damaged; Lightning's ModelParallelStrategy loads by the first rank's path on all of them."""
    (folder / "checkpoints/last.ckpt").mkdir(parents=True)
    torch.save({"global_step": 1}, folder / "checkpoints/last-1.ckpt")
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    settings = Namespace(
        default_root_dir=str(folder), logger=None, strategy=Namespace(class_path=strategy) if strategy else "ddp"
    )
    cli: Any = SimpleNamespace(config=Namespace(trainer=settings, ckpt_path="last"))
    AlignCLI.find_run(cli)
    assert cli.ckpt_path == folder / f"checkpoints/{found}.ckpt"


def test_the_best_and_every_third_stay(folder, fit):
    """Validation every 3 of 6 steps; the best of two, and the checkpoint of every 4 steps for good."""
    words = ["--checkpoint.monitor=val/loss", "--checkpoint.save_top_k=1", "--checkpoint.keep_every_n_train_steps=4"]
    assert fit(*words, "--checkpoint.every_n_train_steps=100") == 0
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    (best,) = last["callbacks"]["Checkpoints"]["best"]
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {best, "epoch=0-step=4.ckpt", "last.ckpt", "last-1.ckpt"}
    assert main(["export", str(folder), "--best", "val/loss", "--out", str(folder / "exported")]) == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--checkpoint.keep_last=0"], ["checkpoint.keep_last", 0]),
        (["--checkpoint.every_minutes=0"], ["checkpoint.every_minutes", "0.0"]),
        (["--checkpoint.keep_every_hours=-1"], ["checkpoint.keep_every_hours", "-1.0"]),
        (["--checkpoint.save_top_k=2"], ["checkpoint.save_top_k", 2, "checkpoint.monitor", None]),
    ],
)
def test_impossible_settings(fit, capsys, words, named):
    assert fit(*words) == 2
    error_line(capsys, *named)


def test_two_in_one_folder(folder, fit, capsys):
    """A process of its own holds the lock; killed, it holds it no more."""
    code = f"import time; from pathlib import Path; from align.pipeline.run_lock import run_lock\nwith run_lock(Path({str(folder)!r})):\n    print('held', flush=True); time.sleep(600)"  # noqa: E501
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert fit() == 1
    error_line(capsys, folder, holder.pid)
    holder.kill()
    holder.wait()
    with run_lock(folder):
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()


def test_ctrl_c_writes_a_checkpoint_and_the_next_try_ends_in_the_same_bits(run, folder, fit, capsys):
    """As on SIGTERM, but the exit code says that it was interrupted; afterwards Ctrl-C is KeyboardInterrupt again."""
    assert fit(terminate(step=3, name="SIGINT"), "--checkpoint.every_n_train_steps=100") == 130
    last = folder / "checkpoints/last.ckpt"
    assert names(capsys.readouterr().err, 4, last, "--ckpt_path last")
    assert global_step(last) == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    preemption.forget()
    assert fit("--ckpt_path=last") == 0
    assert weights(folder) == weights(run / "sft")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_ends_the_process_at_once():
    """The first is noted, one right behind it is the same wish, one after the patience kills."""
    code = (
        "import os, signal, time; from align.training import preemption as p; p.listen(); p._PATIENCE = 0.2\n"
        "for _ in range(2): os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(0.3); assert p.asked(); print('still here', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "still here\n"
    assert done.returncode == -signal.SIGTERM
    assert done.stderr.count("SIGTERM") == 1
