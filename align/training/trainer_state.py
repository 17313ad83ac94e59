"""The Trainer's state, beyond its own properties."""

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from align.training.lightning_internals import batches_begun, is_last_batch

VALIDATED = ("val/", "policy/")
"""Beginnings of the names of the metrics that a validation logs"""


def validating_in_fit(trainer: pl.Trainer) -> bool:
    """Whether a validation runs during ``fit``, and is not the sanity check."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def begins(trainer: pl.Trainer) -> bool:
    """Whether a new run has not trained on any batch yet."""
    return trainer.global_step == 0 and not batches_begun(trainer)


def ends(trainer: pl.Trainer) -> bool:
    """Whether the batch just trained on is the run's last: by max_steps, by max_epochs, or because it is stopped."""
    epochs = trainer.max_epochs
    last_epoch = epochs not in (None, -1) and trainer.current_epoch + 1 >= (epochs or 0)
    return trainer.global_step == trainer.max_steps or trainer.should_stop or (last_epoch and is_last_batch(trainer))
