"""What the Trainer is doing."""

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn


def validating_in_fit(trainer: pl.Trainer) -> bool:
    """Whether a validation is one of training's, and not the sanity check or ``align validate``."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
