"""The Trainer's state, beyond its own properties."""

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn


def validating_in_fit(trainer: pl.Trainer) -> bool:
    """Whether a validation runs during ``fit``, and is not the sanity check."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
