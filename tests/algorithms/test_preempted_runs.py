"""Asked to leave in the middle of a rollout or a validation, a run leaves there, and ends in the same bits later."""

import csv
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from ppo_parts import PromptModule, Prompts, fit, share
from test_ppo_resume import everything

from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.callbacks.loggers import RunLog
from align.training import preemption
from align.training.checkpoint_files import global_step
from align.training.checkpointing import Checkpoints
from align.training.preemption import Preempted
from align.training.weight_average import WeightAverage


class Heldout(Prompts):
    """From the first batch each time, as validation is."""

    def __iter__(self):
        self.delivered = 0
        yield from super().__iter__()


class Data(PromptModule):
    def val_dataloader(self):
        return Heldout(self.lengths, self.batch_size)


class Terminate(Callback):
    """SIGTERM to this process, once, in a hook; and the hooks that came behind it."""

    def __init__(self, hook: str, step: int, batch: int = 0) -> None:
        self.later: list[str] = []

        def on_hook(trainer, stage, *rest):
            numbers = [one for one in rest if isinstance(one, int)]
            if self.later or trainer.global_step != step or (numbers and numbers[0] != batch):
                return
            self.later.append(hook)
            os.kill(os.getpid(), signal.SIGTERM)

        setattr(self, hook, on_hook)
        for name in ("on_train_batch_start", "on_validation_batch_end", "on_validation_end"):
            if name != hook:
                setattr(self, name, lambda *_, name=name: self.later and self.later.append(name))


@pytest.fixture(autouse=True)
def signals():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    preemption.forget()
    yield
    preemption.forget()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run(folder: Path, *callbacks: Callback, ckpt_path: Path | None = None, every: int = 100, **settings):
    """Three iterations of four steps, each validated on three batches; the average of the weights beside them."""
    preemption.forget()
    stage = everything(policy_evaluation=PolicyEvaluationConfig(prompts=8, max_new_tokens=4))
    return fit(
        stage,
        data=Data(),
        **{"max_epochs": 3} | settings,
        limit_val_batches=1.0,
        callbacks=[*callbacks, WeightAverage(0.9), Checkpoints(every_n_train_steps=every)],
        enable_checkpointing=True,
        logger=RunLog(folder),
        default_root_dir=str(folder),
        ckpt_path=None if ckpt_path is None else str(ckpt_path),
    )


def last(folder: Path) -> Path:
    return folder / "checkpoints/last.ckpt"


def end_of(folder: Path):
    """The state that the run left, but for what no next step reads, and its log."""
    stored = torch.load(last(folder), weights_only=True)
    kept = [stored[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "rollout", "global_step")]
    loader = stored["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    with (folder / "metrics.csv").open(newline="") as file:
        return [*kept, stored["callbacks"]["WeightAverage"], loader], list(csv.DictReader(file))


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


BY_EPOCHS, BY_STEPS = {"max_epochs": 3}, {"max_epochs": -1, "max_steps": 12}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    ends = {}
    for number, settings in enumerate((BY_EPOCHS, BY_STEPS)):
        folder = tmp_path_factory.mktemp("whole") / str(number)
        run(folder, **settings)
        ends[number] = end_of(folder)
    return ends


@pytest.mark.parametrize(
    ("hook", "step", "batch", "settings"),
    [
        ("on_train_epoch_start", 4, 0, BY_EPOCHS),
        ("on_train_epoch_start", 8, 0, BY_STEPS),
        ("on_validation_start", 4, 0, BY_EPOCHS),
        ("on_validation_batch_start", 8, 1, BY_STEPS),
        ("on_validation_batch_start", 12, 2, BY_EPOCHS),
        ("on_train_batch_end", 8, 3, BY_EPOCHS),
    ],
)
def test_left_at_once_and_resumed_to_the_same_bits(tmp_path: Path, whole, hook, step, batch, settings):
    """Nothing of the next step, and no more of the validation, happens behind the signal."""
    asked = Terminate(hook, step, batch)
    with pytest.raises(Preempted) as left:
        run(tmp_path / "run", asked, **settings)
    assert asked.later == [hook]
    assert (left.value.step, left.value.checkpoint) == (step, str(last(tmp_path / "run")))
    assert global_step(last(tmp_path / "run")) == step
    run(tmp_path / "run", ckpt_path=last(tmp_path / "run"), **settings)
    (state, rows), number = end_of(tmp_path / "run"), int(settings is BY_STEPS)
    assert same(state, whole[number][0])
    assert rows == whole[number][1]


def test_asked_while_the_reward_scores(tmp_path: Path, whole, monkeypatch: pytest.MonkeyPatch):
    """The rollout's counts, reward statistics and prompts are then those of before it."""
    calls = []

    def terminating(prompts, responses):
        calls.append(len(responses))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return share(prompts, responses)

    monkeypatch.setattr("ppo_parts.share", terminating)
    with pytest.raises(Preempted) as left:
        run(tmp_path / "run")
    assert left.value.step == 8
    run(tmp_path / "run", ckpt_path=last(tmp_path / "run"))
    state, rows = end_of(tmp_path / "run")
    assert same(state, whole[0][0])
    assert rows == whole[0][1]


def test_a_step_is_saved_once(tmp_path: Path):
    """A checkpoint of step 8 lies there already; asked behind it, and again right after resuming."""
    written = []
    for ckpt_path in (None, last(tmp_path / "run")):
        with pytest.raises(Preempted) as left:
            run(tmp_path / "run", Terminate("on_train_epoch_start", 8), ckpt_path=ckpt_path, every=4)
        assert left.value.step == 8
        written.append(last(tmp_path / "run").stat().st_ino)
    assert written[0] == written[1]
    assert sorted(path.name for path in last(tmp_path / "run").parent.iterdir()) == ["last-1.ckpt", "last.ckpt"]


def test_asked_in_the_first_rollout_there_is_nothing_to_keep(tmp_path: Path):
    with pytest.raises(Preempted) as left:
        run(tmp_path / "run", Terminate("on_train_epoch_start", 0))
    assert (left.value.step, left.value.checkpoint) == (0, None)
    assert not (tmp_path / "run/checkpoints").exists()


def test_the_clock_keeps_the_first_checkpoint_behind_each_span_of_training(tmp_path: Path, monkeypatch):
    """Half an hour passes in a step, and a checkpoint is written every second step: after 1, 2, 3, ... hours.

    Of spans of 1.5 hours those at 2, 3, 5 and 6 h (steps 4, 6, 10, 12) are the first behind 1.5, 3, 4.5 and 6 h. A
    run that goes on from step 6 counts on from there, though a week lies between.
    """
    clock = [0.0]
    monkeypatch.setattr("align.training.checkpointing.time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Steps(Callback):
        def on_train_batch_start(self, *_):
            clock[0] += 1800

    def hourly(folder: Path, *more: Callback, ckpt_path: Path | None = None):
        checkpoints = Checkpoints(every_n_train_steps=2, every_minutes=None, keep_every_hours=1.5)
        callbacks = [Steps(), *more, checkpoints]
        fit(everything(), max_epochs=3, callbacks=callbacks, enable_checkpointing=True, default_root_dir=str(folder),
            ckpt_path=ckpt_path and str(ckpt_path))  # fmt: skip

    def kept(folder: Path):
        return sorted(int(path.stem.split("step=")[1]) for path in (folder / "checkpoints").glob("*step=*.ckpt"))

    hourly(tmp_path / "whole")
    assert kept(tmp_path / "whole") == [4, 6, 10, 12]
    with pytest.raises(Preempted):
        hourly(tmp_path / "run", Terminate("on_train_batch_end", 6, 1))
    assert kept(tmp_path / "run") == [4, 6]
    clock[0] += 7 * 24 * 3600
    preemption.forget()
    hourly(tmp_path / "run", ckpt_path=last(tmp_path / "run"))
    assert kept(tmp_path / "run") == [4, 6, 10, 12]
