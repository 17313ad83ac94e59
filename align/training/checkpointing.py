"""Checkpoints from which a run resumes, bitwise identically on the same machine, and preemption."""

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.checkpoint import CheckpointException

from align.io.atomic import replacing_file
from align.training import checkpoint_files as files
from align.training import preemption
from align.training.lightning_internals import (
    accumulating,
    fit_loop_state,
    is_last_batch,
    repeat_validation,
    replace_fit_loop,
    stored_fit_loop,
    validation_follows,
)
from align.training.numerics import changes, numerics
from align.training.preemption import Preempted
from align.training.resume import changes_of_training, settings_changes
from align.training.trainer_state import begins, validating_in_fit

FOLDER = "checkpoints"

PREEMPTED = "preempted.json"


class Checkpoints(Checkpoint):
    """Save ``checkpoints/last.ckpt``, and further checkpoints as ``epoch=E-step=S.ckpt`` as configured.

    Checkpoints are saved between optimizer steps, and after a validation or epoch end that follows the step, so that a
    resumed run neither skips nor repeats one. (Lightning's ModelCheckpoint saves before the validation, which a resumed
    run then skips.) ``last.ckpt`` of the final step is published only after ``model/`` is complete. A run that is
    stopped early saves no final checkpoint, because resuming from it would train on.

    With gradient accumulation a step ends with its last micro-batch; a checkpoint that becomes due in between is saved
    there.

    On SIGTERM, SIGINT (Ctrl-C), or SIGUSR1 in a SLURM job, all ranks save a checkpoint after the same step and ``fit``
    raises ``Preempted``. A signal during a validation or a rollout saves the step before it; the resumed run repeats
    the validation or rollout.

    Args:
        every_n_train_steps: Optimizer steps between checkpoints
        every_minutes: Save at least this often, minutes; None: by steps only
        keep_last: How many recent checkpoints to keep: last.ckpt, last-1.ckpt, ...; with 1 there is no fallback
        keep_every_n_train_steps: Keep a checkpoint permanently every so many optimizer steps
        keep_every_hours: Keep a checkpoint permanently every so many hours of training
        save_top_k: -1: keep all checkpoints permanently; above 0: keep that many, by the monitor
        monitor: Metric that ranks checkpoints, such as val/loss; each validation then saves one
        mode: Whether lower (min) or higher (max) is better

    Raises:
        ValueError: a setting is invalid.
    """

    settings: Mapping[str, Any] | None = None
    """The run's settings by their keys (``flat_settings``), recorded for the runs that resume; the CLI sets them."""

    def __init__(
        self,
        every_n_train_steps: int = 100,
        every_minutes: float | None = 15.0,
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
                f"checkpoint.save_top_k is {save_top_k} and checkpoint.monitor is {monitor}: set both (such as 3 and "
                "val/loss), or neither"
            )
        self.every_n_train_steps, self.every_minutes, self.keep_last = every_n_train_steps, every_minutes, keep_last
        self.keep_every_n_train_steps, self.keep_every_hours = keep_every_n_train_steps, keep_every_hours
        self.save_top_k, self.monitor, self.mode = save_top_k, monitor, mode
        self._best: dict[str, float] = {}
        self._trained = 0.0  # seconds, before this attempt
        # Steps kept by keep_every_hours, and the seconds of training before each.
        self._hourly: dict[int, float] = {}
        self._begun_at = self._saved_at = -1
        self._due = self._leaving = False
        # Inside an optimizer step: accumulated gradients are in no checkpoint.
        self._mid_step = False
        self._dropped: list[str] = []
        # An interrupted validation, which a resumed run starts with.
        self._repeat = False
        # Position of the loops between two epochs: during a rollout they are already in the next one.
        self._between: dict[str, Any] | None = None
        self._first = True
        self._held: list[Path] | None = None
        self._clock = 0.0
        self._begun: float | None = None
        self._changed: list[dict[str, Any]] = []

    @property
    def began(self) -> bool:
        """Whether this attempt has begun to train: a checkpoint of a finished run leaves nothing to do."""
        return self._begun is not None

    def manifest(self) -> dict[str, Any]:
        """The settings that were changed when the run resumed, for the manifest; empty if none were."""
        return {"resumed": self._changed} if self._changed else {}

    def state_dict(self) -> dict[str, Any]:
        """The best checkpoints, those kept by time, whether to repeat a validation, and seconds of training."""
        kept = {"best": dict(self._best), "hourly": dict(self._hourly), "repeat_validation": self._repeat}
        kept["ranked_by"] = [self.monitor, self.mode]
        return kept | {"trained_seconds": self._trained_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them; a ranking by another metric starts over."""
        self._best = dict(state_dict["best"]) if state_dict["ranked_by"] == [self.monitor, self.mode] else {}
        self._repeat, self._hourly = state_dict["repeat_validation"], dict(state_dict["hourly"])
        self._trained = state_dict["trained_seconds"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record settings and numerics; during a rollout, store the position before it."""
        checkpoint["numerics"] = numerics(trainer)
        checkpoint["changed_settings"] = self._changed
        if self.settings is not None:
            checkpoint[files.SETTINGS] = dict(self.settings)
        if (position := self._position) is not None:
            checkpoint["epoch"] = position["epoch"]
            replace_fit_loop(checkpoint, position["loop"])

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the position, in case a rollout comes first, and changed settings; warn if the numerics differ."""
        self._changed = list(checkpoint.get("changed_settings", ()))
        if trainer.training and self.settings is not None and files.SETTINGS in checkpoint:
            found = changes_of_training(settings_changes(checkpoint[files.SETTINGS], self.settings))
            recorded = {change.key: [change.before, change.now] for change in found}
            self._changed += [{"step": checkpoint["global_step"], "changed": recorded}] if recorded else []
        then = checkpoint.get("numerics")  # absent where somebody else's checkpoint is loaded
        if then and trainer.training and (changed := changes(then, numerics(trainer))):
            rank_zero_warn(
                f"resuming under different numerics ({changed}); results may differ by floating-point rounding"
            )
        if (loop := stored_fit_loop(checkpoint)) is not None:
            self._between = {"epoch": checkpoint["epoch"], "loop": loop}

    @property
    def _position(self) -> dict[str, Any] | None:
        """Position of the loops to resume from, if not the current one."""
        return self._between if self._leaving and not self._repeat else None

    # When to save.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace Lightning's default writer of single files, but not a plugin that the recipe sets."""
        if stage == "fit" and type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = files.BackgroundIO()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install signal handlers, after Lightning has installed its own."""
        preemption.listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install signal handlers, delete what a killed process left, and repeat an interrupted validation."""
        preemption.listen()
        self._clock = self._begun = time.monotonic()
        self._due = self._mid_step = self._leaving = False
        self._dropped = []
        # Rank 0's path: only rank 0 has checked that the file is whole.
        found = trainer.strategy.broadcast(trainer.ckpt_path)
        if found is not None and Path(found).resolve() == _last(trainer).resolve():
            self._saved_at = trainer.global_step
        if self._repeat:
            repeat_validation(trainer)
            # Only the checkpoint that owes the validation has this step, so save again after it.
            self._repeat, self._due = False, True
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            files.remove_leftovers(_folder(trainer))
            (Path(trainer.default_root_dir) / PREEMPTED).unlink(missing_ok=True)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Exit between two epochs, if asked to."""
        self._leave(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Exit between two steps, if asked to: the metrics of the last one are on disk by now."""
        self._leave(trainer)
        self._begun_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if due, at the end of an optimizer step."""
        self._mid_step = accumulating(trainer)
        step = trainer.global_step
        if step == self._begun_at or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        asked = self._asked(trainer)
        now = not step % self.every_n_train_steps or self._kept_by_count(step) or _is_last(trainer)
        self._due = self._due or asked or now
        if not validation_follows(trainer) and not _ends_epoch(trainer):
            self._between_steps(trainer)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Exit between two validation batches, if asked to."""
        preemption.leave_validation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if due before the validation, if preempted during it, or if this checkpoint is among the best."""
        if not validating_in_fit(trainer) or begins(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # A collective: every rank calls it, whatever else is due.
        asked = self._asked(trainer)
        ranked = self._rank(trainer)
        self._due = self._due or asked or ranked
        if not self._mid_step and not _ends_epoch(trainer):
            self._between_steps(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if due at the epoch's last step."""
        if _ends_epoch(trainer):
            self._between_steps(trainer)

    def _between_steps(self, trainer: pl.Trainer) -> None:
        """Save if due; after an epoch's last step, remember the position of the loops."""
        ended = is_last_batch(trainer)
        self._between = {"epoch": trainer.current_epoch, "loop": fit_loop_state(trainer)} if ended else None
        if self._due:
            self._save(trainer)
        for name in self._dropped:
            trainer.strategy.remove_checkpoint(_folder(trainer) / name)
        self._dropped = []

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Publish the final step's checkpoint."""
        if self._held is not None:
            self._publish(trainer, self._held)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait until the last checkpoint is written, as not every strategy does, and let Ctrl-C interrupt again."""
        preemption.release_interrupt()
        writer = trainer.strategy.checkpoint_io
        if isinstance(writer, files.BackgroundIO):
            writer.finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """When preempted: save the current step, wait until it is written, and record it in preempted.json."""
        if not isinstance(exception, Preempted) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.teardown(trainer, pl_module, "fit")
            return
        step = trainer.global_step
        self._leaving, self._repeat = True, trainer.validating
        if step and self._saved_at != step:
            self._save(trainer, publish=True)
        self.teardown(trainer, pl_module, "fit")
        exception.step, exception.checkpoint = step, str(_last(trainer)) if step else None
        if trainer.is_global_zero:
            with replacing_file(Path(trainer.default_root_dir, PREEMPTED)) as file:
                file.write(json.dumps({"step": step, "checkpoint": exception.checkpoint}) + "\n")

    def _kept_by_count(self, step: int) -> bool:
        return bool(self.keep_every_n_train_steps) and not step % (self.keep_every_n_train_steps or 1)

    def _kept_permanently(self, step: int) -> bool:
        return self._kept_by_count(step) or step in self._hourly

    def _trained_seconds(self) -> float:
        return self._trained + (0.0 if self._begun is None else time.monotonic() - self._begun)

    def _keep_by_time(self, step: int) -> None:
        """Keep this checkpoint permanently if it is the first in a new interval of keep_every_hours."""
        if self.keep_every_hours is not None:
            span, now = 3600 * self.keep_every_hours, self._trained_seconds()
            if now // span > max(self._hourly.values(), default=0.0) // span:
                self._hourly[step] = now

    def _asked(self, trainer: pl.Trainer) -> bool:
        """Whether any rank was asked to exit, or every_minutes has passed on rank 0; the same on all ranks."""
        late = (
            self.every_minutes is not None
            and trainer.is_global_zero
            and time.monotonic() - self._clock > 60 * self.every_minutes
        )
        asked, late = preemption.any_of(trainer, preemption.asked(), late)
        self._leaving = self._leaving or asked
        return self._leaving or late

    # What to save.

    def _save(self, trainer: pl.Trainer, *, publish: bool = False) -> None:
        """Write a checkpoint and publish it under its names; the final step's is held back unless ``publish``."""
        self._due = False
        if trainer.should_stop:
            return
        step, folder = trainer.global_step, _folder(trainer)
        self._saved_at, self._clock = step, time.monotonic()
        epoch = trainer.current_epoch if self._position is None else self._position["epoch"]
        name = f"epoch={epoch}-step={step}.ckpt"
        self._keep_by_time(step)
        named = self.save_top_k == -1 or self._kept_permanently(step) or name in self._best
        try:
            trainer.save_checkpoint(files.temporary(folder))
        except CheckpointException as error:  # of shards; names the failure of each rank
            raise files.unwritten(files.temporary(folder), next(iter(error.failures.values()))[0]) from error
        names = [folder / name] if named else []
        if _is_last(trainer) and not publish:
            self._held = names
        else:
            self._publish(trainer, names)

    def _publish(self, trainer: pl.Trainer, names: list[Path]) -> None:
        """Give the checkpoint that was just written its names."""
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
        """At the first save: which recent checkpoints are damaged or belong to another attempt."""
        first, self._first = self._first, False
        step, fresh = trainer.global_step, trainer.ckpt_path is None

        def stale(path: Path) -> bool:
            return first and (fresh or (files.global_step(path) or step) >= step)

        return stale

    def _rank(self, trainer: pl.Trainer) -> bool:
        """Rank this validation; checkpoints that drop out are deleted after the next save.

        Raises:
            ValueError: the monitor is not logged.
        """
        if self.monitor is None:
            return False
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"checkpoint.monitor is {self.monitor!r}, which is not logged; "
                f"use one of {', '.join(sorted(trainer.callback_metrics))}"
            )
        value = float(trainer.callback_metrics[self.monitor])
        name = f"epoch={trainer.current_epoch}-step={trainer.global_step + self._mid_step}.ckpt"
        sign = 1 if self.mode == "min" else -1
        ranked = sorted({**self._best, name: value}.items(), key=lambda entry: sign * entry[1])
        self._best = dict(ranked[: self.save_top_k])
        if value != value or name not in self._best:  # noqa: PLR0124 (NaN)
            self._best.pop(name, None)
            return False
        self._dropped += [other for other, _ in ranked[self.save_top_k :] if not self._named_otherwise(other)]
        return True

    def _named_otherwise(self, name: str) -> bool:
        return self._kept_permanently(int(name.removesuffix(".ckpt").partition("step=")[2]))

    def _leave(self, trainer: pl.Trainer) -> None:
        """End the run here if all ranks agreed to.

        Raises:
            Preempted: they did.
        """
        if self._leaving and not self._mid_step and self._saved_at == trainer.global_step:
            raise Preempted


def _folder(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / FOLDER


def _last(trainer: pl.Trainer) -> Path:
    return _folder(trainer) / files.LAST


def _is_last(trainer: pl.Trainer) -> bool:
    """Whether the step just made is the run's last, by max_steps or max_epochs."""
    epochs = trainer.max_epochs
    out_of_epochs = epochs not in (None, -1) and trainer.current_epoch + 1 >= (epochs or 0)
    return trainer.global_step == trainer.max_steps or (out_of_epochs and _ends_epoch(trainer))


def _ends_epoch(trainer: pl.Trainer) -> bool:
    """Whether the epoch ends here. Ignored under max_steps, where Lightning resumes badly from there."""
    return trainer.max_steps == -1 and is_last_batch(trainer)
