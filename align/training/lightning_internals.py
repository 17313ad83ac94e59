"""Every use of Lightning that its public interface does not cover, each behind a function that says why.

Tested one by one in ``tests/training/test_lightning_internals.py``, which fails when a new version of Lightning changes
what they rely on. Nothing else in align may touch a private attribute of Lightning, or the progress inside its loops.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.evaluation_loop import RestartStage


def attached_trainer(module: pl.LightningModule) -> pl.Trainer | None:
    """The Trainer of a module; None before there is one, where the public ``trainer`` raises."""
    return module._trainer


def batch_index(trainer: pl.Trainer) -> int:
    """Index of the current training batch, counted from 0 over all epochs; ``global_step`` counts optimizer steps."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def batches_begun(trainer: pl.Trainer) -> int:
    """Number of training batches that have begun, over all epochs; an interrupted optimizer step counts too."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def validate_now(trainer: pl.Trainer) -> None:
    """Validate before the first training batch, as Lightning does after a batch; logged at step 0.

    Lightning can only check a few batches then, without logging them.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    first = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    try:
        loop.run()
    finally:
        trainer.training = True
        trainer._logger_connector._first_loop_iter = first


def is_last_batch(trainer: pl.Trainer) -> bool:
    """Whether the current training batch is the epoch's last: callbacks see an epoch's end only after validation."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def skip_batches(trainer: pl.Trainer, count: int) -> None:
    """Make the current batch the epoch's last, as if ``count`` more had passed.

    Lightning can't end an epoch early without ending the run. Validation, checkpoints and resuming then see an ordinary
    end; ``global_step`` and the totals count only batches that were trained on.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for name in ("ready", "started", "processed", "completed"):
        setattr(progress.current, name, getattr(progress.current, name) + count)
    progress.is_last_batch = True


def accumulating(trainer: pl.Trainer) -> bool:
    """Whether the latest micro-batch leaves its gradients to a later one's optimizer step; there is no public hook."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates after the current batch; asked by callbacks that run just before it decides."""
    loop = trainer.fit_loop
    if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):  # type: ignore[arg-type]
        return False
    validation = loop.epoch_loop.val_loop
    validation.setup_data()  # as it does before it runs
    return not validation.skip  # without validation data


def force_validation(trainer: pl.Trainer) -> Callable[[], None]:
    """Have Lightning validate after the current batch whatever its schedule; returns what restores the schedule.

    A callback's own validation at the end of training would come after the last checkpoint's position is fixed.
    """
    forced = {"check_val_every_n_epoch": 1, "val_check_batch": 1, "_val_check_time_interval": None}
    schedule = {name: getattr(trainer, name) for name in forced}

    def apply(values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(trainer, name, value)

    apply(forced)
    return partial(apply, schedule)


def repeat_validation(trainer: pl.Trainer) -> None:
    """Have a resumed run start with the validation that was interrupted.

    Lightning skips it, because its own checkpoints are saved after that validation.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.batch_progress.reset_on_run()
    loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION


def fit_loop_state(trainer: pl.Trainer) -> dict[str, Any]:
    """The state of the training loop as a checkpoint stores it, to save an earlier position than the current one."""
    return trainer.fit_loop.state_dict()


def stored_fit_loop(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of the training loop in a checkpoint; None where the checkpoint has weights only."""
    state: dict[str, Any] | None = checkpoint.get("loops", {}).get("fit_loop")
    return state


def replace_fit_loop(checkpoint: dict[str, Any], state: dict[str, Any]) -> None:
    """Put the state of a training loop into a checkpoint that is being saved."""
    checkpoint["loops"] = {**checkpoint["loops"], "fit_loop": state}


def stored_data_position(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The train loader's state in a checkpoint; None where there is none.

    Lightning restores it only into loaders made after the checkpoint was read, and asking for the number of steps in
    ``configure_optimizers`` makes them earlier.
    """
    loop = (stored_fit_loop(checkpoint) or {}).get("state_dict", {})
    return next(iter(loop.get("combined_loader", ())), None)
