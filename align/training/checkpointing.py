"""Writes checkpoints from which a run resumes, bitwise identically on one machine; leaves in good order when asked."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.utilities import rank_zero_warn

from align.training import checkpoint_files as files
from align.training import preemption
from align.training.numerics import arithmetic, changes
from align.training.preemption import Preempted
from align.training.trainer_state import validating_in_fit

FOLDER = "checkpoints"

PREEMPTED = "preempted.json"


class Checkpoints(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` and keeps what else is asked for, as ``epoch=E-step=S.ckpt``.

    A checkpoint is made between two optimizer steps only, and behind the validation and the epoch's end that follow its
    step if they do: a run that goes on from it has nothing to make up for. (Lightning's ModelCheckpoint saves before
    that validation, which a resumed run then leaves out.) There is one of the last step, which gets its name behind
    everything else: who finds it finds the model directory too. A run that was told to stop early has none: it would go
    on from there.

    Where gradients are accumulated, a step ends with the last of its micro-batches: what a validation among them asks
    for is written there.

    SIGTERM, or SIGUSR1 in a SLURM job: all ranks write a checkpoint behind the same step and ``fit`` raises
    ``Preempted``. In the middle of a validation or a rollout the step is the one before it: what was validated or
    sampled so far is made again by who goes on.

    Args:
        every_n_train_steps: Optimizer steps between two checkpoints
        every_minutes: Minutes after which there is one in any case; None: only steps count
        keep_last: How many of the newest stay: last.ckpt, last-1.ckpt, ...; with 1 there is nothing to fall back to
        keep_every_n_train_steps: The checkpoint of every so many optimizer steps stays for good
        keep_every_hours: The first checkpoint behind every so many hours of training stays for good
        save_top_k: -1: every checkpoint stays for good; above 0: so many, those of the best monitor
        monitor: What best means, such as val/loss; read after each validation, which then writes a checkpoint
        mode: Whether a low or a high monitor is good

    Raises:
        ValueError: a setting is impossible.
    """

    def __init__(
        self,
        every_n_train_steps: int = 100,
        every_minutes: float | None = None,
        keep_last: int = 2,
        keep_every_n_train_steps: int | None = None,
        keep_every_hours: float | None = None,
        save_top_k: int = 0,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        """Check the settings."""
        super().__init__()
        least = {"every_n_train_steps": (every_n_train_steps, 1), "keep_last": (keep_last, 1)}
        least |= {"keep_every_n_train_steps": (keep_every_n_train_steps or 1, 1), "save_top_k": (save_top_k, -1)}
        for name, (value, smallest) in least.items():
            if value < smallest:
                raise ValueError(f"checkpoint.{name} is {value}: it must be at least {smallest}")
        for name, span in {"every_minutes": every_minutes, "keep_every_hours": keep_every_hours}.items():
            if span is not None and span <= 0:
                raise ValueError(f"checkpoint.{name} is {span}: it must be above 0")
        if (save_top_k > 0) != (monitor is not None):
            raise ValueError(
                f"checkpoint.save_top_k is {save_top_k} and checkpoint.monitor {monitor}: the best need a monitor, "
                "such as val/loss, and a monitor needs a save_top_k above 0"
            )
        self.every_n_train_steps, self.every_minutes, self.keep_last = every_n_train_steps, every_minutes, keep_last
        self.keep_every_n_train_steps, self.keep_every_hours = keep_every_n_train_steps, keep_every_hours
        self.save_top_k, self.monitor, self.mode = save_top_k, monitor, mode
        self._best: dict[str, float] = {}
        self._trained = 0.0  # seconds before this try
        # The steps that the clock chose to keep, and the seconds of training before each.
        self._hourly: dict[int, float] = {}
        self._begun_at = self._saved_at = -1
        self._due = self._leaving = False
        # Whether gradients of some micro-batches wait for the rest of their step: no checkpoint has those.
        self._open = False
        self._dropped: list[str] = []
        # A validation that was broken off, and has to come first when the run goes on.
        self._owed = False
        # Where the loops stood between two epochs: in the middle of a rollout they are in the next one.
        self._between: dict[str, Any] | None = None
        self._first = True
        self._held: list[Path] | None = None
        self._clock = 0.0
        self._begun: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best, what the clock chose, whether a validation is still to come, and seconds of training."""
        kept = {"best": dict(self._best), "hourly": dict(self._hourly), "owed": self._owed}
        return kept | {"trained_seconds": self._trained_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._best = dict(state_dict["best"])
        self._owed, self._hourly = state_dict.get("owed", False), dict(state_dict.get("hourly", {}))
        self._trained = state_dict.get("trained_seconds", 0.0)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say how it was computed; in the middle of a rollout, be between the two epochs."""
        checkpoint["arithmetic"] = arithmetic(trainer)
        if (place := self._place) is not None:
            checkpoint["epoch"] = place["epoch"]
            checkpoint["loops"] = {**checkpoint["loops"], "fit_loop": place["loop"]}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What comes first may be a rollout; warn of bits that can't be the same any more."""
        then = checkpoint.get("arithmetic")
        if then and trainer.training and (changed := changes(then, arithmetic(trainer))):
            rank_zero_warn(
                f"the checkpoint was computed otherwise ({changed}): the run goes on from it, and ends elsewhere than "
                "the uninterrupted one, by what rounding makes of it"
            )
        if "loops" in checkpoint:
            self._between = {"epoch": checkpoint["epoch"], "loop": checkpoint["loops"]["fit_loop"]}

    @property
    def _place(self) -> dict[str, Any] | None:
        """Where the loops are to go on, if that is not where they are."""
        return self._between if self._leaving and not self._owed else None

    # When.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take over the writing of single files, unless the recipe brought a plugin of its own."""
        # Exactly Lightning's default: a plugin of the recipe's is left alone.
        if stage == "fit" and type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = files.BackgroundIO()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen from here on: Lightning has just installed handlers of its own."""
        preemption.listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, clear away what a killed process left, and begin with the validation that is owed."""
        preemption.listen()
        self._clock = self._begun = time.monotonic()
        self._due = self._open = self._leaving = False
        self._dropped = []
        # The first rank's: the others may not have looked whether theirs is whole.
        found = trainer.strategy.broadcast(trainer.ckpt_path)
        if found is not None and Path(found).resolve() == _last(trainer).resolve():
            self._saved_at = trainer.global_step
        if self._owed:
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.batch_progress.reset_on_run()
            # Lightning would leave it out: its own checkpoints in that place are made behind the validation.
            validation._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            # The run's last step has no checkpoint yet but the one that owes it.
            self._owed, self._due = False, True
        if trainer.is_global_zero:
            files.remove_litter(_folder(trainer))
            (Path(trainer.default_root_dir) / PREEMPTED).unlink(missing_ok=True)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave, between two epochs."""
        self._leave(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leave, between two steps: what was logged of the last one is written by now."""
        self._leave(trainer)
        self._begun_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, at the end of an optimizer step."""
        self._open = preemption.accumulating(trainer)
        step = trainer.global_step
        if step == self._begun_at or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        asked = self._asked(trainer)
        now = not step % self.every_n_train_steps or self._kept_by_count(step) or _is_last(trainer)
        self._due = self._due or asked or now
        if not _validation_follows(trainer) and not _ends_epoch(trainer):
            self._between_steps(trainer)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Leave, between two batches of a validation."""
        preemption.leave_validation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if it was time before the validation, if somebody asked during it, or if it is among the best."""
        if not validating_in_fit(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # All ranks ask each other, whatever else is due.
        asked = self._asked(trainer)
        ranked = self._rank(trainer)
        self._due = self._due or asked or ranked
        if not self._open and not _ends_epoch(trainer):
            self._between_steps(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if it was time at the epoch's last step."""
        if _ends_epoch(trainer):
            self._between_steps(trainer)

    def _between_steps(self, trainer: pl.Trainer) -> None:
        """Save if it is time; behind an epoch's last step, keep in mind where the loops stand."""
        loop = trainer.fit_loop
        ended = loop.epoch_loop.batch_progress.is_last_batch
        self._between = {"epoch": trainer.current_epoch, "loop": loop.state_dict()} if ended else None
        if self._due:
            self._save(trainer)
        for name in self._dropped:
            trainer.strategy.remove_checkpoint(_folder(trainer) / name)
        self._dropped = []

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the last step's checkpoint its names."""
        if self._held is not None:
            self._publish(trainer, self._held)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait for the last checkpoint; not every strategy does."""
        writer = trainer.strategy.checkpoint_io
        if isinstance(writer, files.BackgroundIO):
            writer.finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave: write what is not yet written, wait for it, and say that it is there."""
        if not isinstance(exception, Preempted) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.teardown(trainer, pl_module, "fit")
            return
        step = trainer.global_step
        self._leaving, self._owed = True, trainer.validating
        if step and self._saved_at != step:
            self._save(trainer, at_once=True)
        self.teardown(trainer, pl_module, "fit")
        exception.step, exception.checkpoint = step, str(_last(trainer)) if step else None
        if trainer.is_global_zero:
            note = json.dumps({"step": step, "checkpoint": exception.checkpoint})
            run = Path(trainer.default_root_dir)
            run.mkdir(parents=True, exist_ok=True)
            (run / PREEMPTED).write_text(note + "\n")

    def _kept_by_count(self, step: int) -> bool:
        return bool(self.keep_every_n_train_steps) and not step % (self.keep_every_n_train_steps or 1)

    def _kept_for_good(self, step: int) -> bool:
        return self._kept_by_count(step) or step in self._hourly

    def _trained_seconds(self) -> float:
        return self._trained + (0.0 if self._begun is None else time.monotonic() - self._begun)

    def _choose_by_clock(self, step: int) -> None:
        """Keep this checkpoint for good if it is the first behind one of the spans of training."""
        if self.keep_every_hours is not None:
            span, now = 3600 * self.keep_every_hours, self._trained_seconds()
            if now // span > max(self._hourly.values(), default=0.0) // span:
                self._hourly[step] = now

    def _asked(self, trainer: pl.Trainer) -> bool:
        """Whether any rank was asked to leave, or time is up on the first; all ranks answer alike."""
        late = (
            self.every_minutes is not None
            and trainer.is_global_zero
            and time.monotonic() - self._clock > 60 * self.every_minutes
        )
        asked, late = preemption.any_of(trainer, preemption.asked(), late)
        self._leaving = self._leaving or asked
        return self._leaving or late

    # What.

    def _save(self, trainer: pl.Trainer, *, at_once: bool = False) -> None:
        """Write a checkpoint, for all the names it deserves; the run's last one waits for them unless at_once."""
        self._due = False
        if trainer.should_stop:
            return
        step, folder = trainer.global_step, _folder(trainer)
        self._saved_at, self._clock = step, time.monotonic()
        epoch = trainer.current_epoch if self._place is None else self._place["epoch"]
        name = f"epoch={epoch}-step={step}.ckpt"
        self._choose_by_clock(step)
        named = self.save_top_k == -1 or self._kept_for_good(step) or name in self._best
        trainer.save_checkpoint(files.temporary(folder))
        names = [folder / name] if named else []
        if _is_last(trainer) and not at_once:
            self._held = names
        else:
            self._publish(trainer, names)

    def _publish(self, trainer: pl.Trainer, names: list[Path]) -> None:
        """Let the checkpoint that was written last be seen."""
        if not trainer.is_global_zero:
            return
        folder, writer = _folder(trainer), trainer.strategy.checkpoint_io
        new, last = files.temporary(folder), _last(trainer)
        job = partial(files.publish, new, last=last, keep_last=self.keep_last, also=names, stale=self._stale(trainer))
        if isinstance(writer, files.BackgroundIO) and not new.is_dir():
            writer.later(job)
        else:
            job()

    def _stale(self, trainer: pl.Trainer) -> Callable[[Path], bool]:
        """At the first checkpoint: which of the newest are damaged, or of another try than this one goes on."""
        first, self._first = self._first, False
        step, fresh = trainer.global_step, trainer.ckpt_path is None

        def stale(path: Path) -> bool:
            return first and (fresh or (files.global_step(path) or step) >= step)

        return stale

    def _rank(self, trainer: pl.Trainer) -> bool:
        """Place this validation among the best, if it is; the checkpoints that lose their place go behind the next one.

        Raises:
            ValueError: the monitor is not logged.
        """
        if self.monitor is None:
            return False
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"checkpoint.monitor is {self.monitor!r}, which is not logged: "
                f"it is one of {', '.join(sorted(trainer.callback_metrics))}"
            )
        value = float(trainer.callback_metrics[self.monitor])
        name = f"epoch={trainer.current_epoch}-step={trainer.global_step + self._open}.ckpt"
        sign = 1 if self.mode == "min" else -1
        ranked = sorted({**self._best, name: value}.items(), key=lambda entry: sign * entry[1])
        self._best = dict(ranked[: self.save_top_k])
        if value != value or name not in self._best:  # noqa: PLR0124 (NaN)
            self._best.pop(name, None)
            return False
        self._dropped += [other for other, _ in ranked[self.save_top_k :] if not self._named_otherwise(other)]
        return True

    def _named_otherwise(self, name: str) -> bool:
        return self._kept_for_good(int(name.removesuffix(".ckpt").partition("step=")[2]))

    def _leave(self, trainer: pl.Trainer) -> None:
        """End the run here if it was agreed on.

        Raises:
            Preempted: it was.
        """
        if self._leaving and not self._open and self._saved_at == trainer.global_step:
            raise Preempted


def _folder(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / FOLDER


def _last(trainer: pl.Trainer) -> Path:
    return _folder(trainer) / files.LAST


def _is_last(trainer: pl.Trainer) -> bool:
    """Whether the step that was made is the run's last by its settings."""
    epochs = trainer.max_epochs
    out_of_epochs = epochs not in (None, -1) and trainer.current_epoch + 1 >= (epochs or 0)
    return trainer.global_step == trainer.max_steps or (out_of_epochs and _ends_epoch(trainer))


def _ends_epoch(trainer: pl.Trainer) -> bool:
    """Whether the epoch's end follows; where steps are counted it means little, and Lightning resumes badly from it."""
    return trainer.max_steps == -1 and bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates behind this batch; it asks itself the same, a moment later."""
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
