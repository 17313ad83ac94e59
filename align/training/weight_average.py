"""An average of the weights over the run: what is validated and written, while training goes on with its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch.distributed.tensor import DTensor

from align.training.trainer_state import validating_in_fit


class WeightAverage(pl.Callback):
    """An exponential moving average of what is trained (Polyak & Juditsky 1992; Tarvainen & Valpola 2017, section 2).

    After optimizer step n: ``average += (1 - d) (weights - average)`` with ``d = min(decay, n / (n + 9))``, so that the
    random start is forgotten whatever the decay. In float32, on the device of the weights: 4 bytes a trained parameter.

    Validation, samples and the model directory see the average; optimizer and checkpoints keep the weights themselves,
    and checkpoints the average beside them. Lightning's own EMAWeightAveraging would write the weights into ``model/``
    (it puts them back before anybody writes), and would average frozen networks too.

    Args:
        decay: share of the average that a step keeps, in [0, 1): 0.999 averages about the last thousand steps; None:
            no average.

    Raises:
        ValueError: the decay is not in [0, 1).
    """

    def __init__(self, decay: float | None = None) -> None:
        """Nothing averaged yet."""
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"average.decay is {decay}: it must lie in [0, 1), or be null for no average")
        self.decay = decay
        self.steps = 0
        self._average: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}  # while the average stands in their place

    def state_dict(self) -> dict[str, Any]:
        """The average and how many steps are in it."""
        return {"steps": self.steps, "average": dict(self._average)} if self.decay is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``; without an average in it, from the weights as they are then."""
        self.steps, self._average = state_dict.get("steps", 0), dict(state_dict.get("average", {}))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the weights as they are, unless a checkpoint brought an average.

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
        """Take in the weights after an optimizer step."""
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
        """Train on with the weights; this callback stands behind those that write."""
        self._restore(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the weights in their place, for who saves them on the way out."""
        self._restore(pl_module)

    @contextmanager
    def applied(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """The average in place of the weights within."""
        already = bool(self._weights)
        self._apply(pl_module)
        try:
            yield
        finally:
            if not already:
                self._restore(pl_module)

    def manifest(self) -> dict[str, Any]:
        """What the manifest says of it."""
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
