"""The Trainer's state, beyond its own properties."""

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from align.training.lightning_internals import batches_begun


def validating_in_fit(trainer: pl.Trainer) -> bool:
    """Whether a validation runs during ``fit``, and is not the sanity check."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def begins(trainer: pl.Trainer) -> bool:
    """Whether a new run has not trained on any batch yet."""
    return trainer.global_step == 0 and not batches_begun(trainer)
