"""A callback: log how far the weights have moved from where they started.

align fit --config sft.yaml --trainer.callbacks+=callback.DistanceFromStart
"""

import lightning.pytorch as pl
import torch


class DistanceFromStart(pl.Callback):
    """Logs ``train/distance``, the Euclidean distance of the trained weights from their initial values.

    Args:
        every_n_steps: optimizer steps between two readings.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        """Check the settings."""
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}: it must be at least 1")
        self.every_n_steps = every_n_steps
        self._start: list[torch.Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights. A resumed run measures from where it resumed."""
        self._start = [weight.detach().clone() for weight in pl_module.trained()]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        """Compare the weights with the copies."""
        if trainer.global_step % self.every_n_steps == 0:
            pairs = zip(pl_module.trained(), self._start, strict=True)
            squares = [(weight.detach() - start).square().sum() for weight, start in pairs]
            pl_module.log("train/distance", torch.stack(squares).sum().sqrt())
