"""A moving average of the weights, which is validated and exported while training continues with the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch.distributed.tensor import DTensor

from align.training.trainer_state import validating_in_fit


class WeightAverage(pl.Callback):
    """Exponential moving average of the trained weights (Polyak & Juditsky 1992; Tarvainen & Valpola 2017, section 2).

    After optimizer step n: ``average += (1 - d) (weights - average)`` with ``d = min(decay, n / (n + 9))``, so that the
    initial weights are forgotten whatever the decay. In float32 on the weights' device: 4 bytes per trained parameter.

    Validation, samples and the model directory use the average; the optimizer keeps the weights, and checkpoints store
    both. Lightning's own EMAWeightAveraging would write the weights into ``model/``, because it restores them before
    anything is written, and would average frozen networks too.

    Args:
        decay: share of the average that a step keeps, in [0, 1): 0.999 averages about the last thousand steps; None: no
            average.

    Raises:
        ValueError: the decay is not in [0, 1).
    """

    def __init__(self, decay: float | None = None) -> None:
        """Check the decay."""
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"average.decay is {decay}: it must lie in [0, 1), or be null for no average")
        self.decay = decay
        self.steps = 0
        self._average: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}  # while the average replaces them

    def state_dict(self) -> dict[str, Any]:
        """The average and its number of steps."""
        return {"steps": self.steps, "average": dict(self._average)} if self.decay is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the average; without one in ``state_dict``, it starts from the weights at fit start."""
        self.steps, self._average = state_dict.get("steps", 0), dict(state_dict.get("average", {}))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the current weights, unless a checkpoint restored an average.

        Raises:
            ValueError: the weights are sharded.
        """
        if self.decay is None:
            return
        weights = _trained(pl_module)
        if any(isinstance(weight, DTensor) for weight in weights.values()):
            raise ValueError("average.decay is set but the weights are sharded: leave it out, or train with ddp")
        start = self._average or weights
        self._average = {
            name: start[name].detach().to(weight.device, torch.float32, copy=True) for name, weight in weights.items()
        }

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after an optimizer step."""
        if self.decay is None or trainer.global_step <= self.steps:
            return
        self.steps = trainer.global_step
        weights = _trained(pl_module)
        kept = min(self.decay, self.steps / (self.steps + 9))
        averages = [self._average[name] for name in weights]
        torch._foreach_lerp_(averages, [weight.detach().float() for weight in weights.values()], 1 - kept)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        if validating_in_fit(trainer):
            self._apply(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the weights; this callback runs after those that write."""
        self._restore(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the weights, in case they are saved on exit."""
        self._restore(pl_module)

    @contextmanager
    def applied(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """Replace the weights by the average for the length of the block."""
        already = bool(self._weights)
        self._apply(pl_module)
        try:
            yield
        finally:
            if not already:
                self._restore(pl_module)

    def manifest(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        return {} if self.decay is None else {"average": {"decay": self.decay, "steps": self.steps}}

    @torch.no_grad()
    def _apply(self, pl_module: pl.LightningModule) -> None:
        if self._weights or not self._average:
            return
        for name, weight in _trained(pl_module).items():
            self._weights[name] = weight.detach().clone()
            weight.copy_(self._average[name])

    @torch.no_grad()
    def _restore(self, pl_module: pl.LightningModule) -> None:
        weights, self._weights = self._weights, {}
        for name, weight in _trained(pl_module).items() if weights else ():
            weight.copy_(weights[name])


def _trained(pl_module: pl.LightningModule) -> dict[str, torch.nn.Parameter]:
    network: Any = pl_module.network
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
