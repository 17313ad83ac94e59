"""What a run starts from: validation before training and the first step, and what training has made of it."""

import math
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from align.training.lightning_internals import batch_index, validate_now
from align.training.trainer_state import begins, validating_in_fit

_BETTER = {"val/loss": -1, "val/accuracy": 1, "policy/reward": 1}
"""Metrics of a validation that tell better from worse, the decisive ones first: 1 if higher is better, -1 if lower"""


class Validated(NamedTuple):
    """The metrics of one validation.

    Attributes:
        step: optimizer steps taken.
        metrics: those in ``_BETTER``, by name.
    """

    step: int
    metrics: dict[str, float]


class Baseline(pl.Callback):
    """Validates before training and compares at the end, so that a run that makes the model worse shows.

    A new run logs ``val/*`` and ``policy/*`` at step 0, and ``train/*`` of the first step whatever
    ``trainer.log_every_n_steps`` is. A resumed run repeats neither. At the end one line compares the first validation
    with the last, and warns if it is worse.

    Args:
        validate: validate before training; it costs as much as every other validation.
    """

    def __init__(self, validate: bool = True) -> None:
        """Nothing measured yet."""
        self.validate = validate
        self.before: Validated | None = None
        self.after: Validated | None = None

    def state_dict(self) -> dict[str, Any]:
        """The first and the latest validation."""
        both = {"before": self.before, "after": self.after}
        # Plain values: checkpoints are read with weights_only.
        return {name: None if found is None else found._asdict() for name, found in both.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.before, self.after = (
            None if state_dict[name] is None else Validated(**state_dict[name]) for name in ("before", "after")
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate, if this is a new run."""
        wanted = self.validate and trainer.enable_validation and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if wanted and begins(trainer):
            validate_now(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics."""
        if not validating_in_fit(trainer):
            return
        values = {name: float(trainer.callback_metrics[name]) for name in _BETTER if name in trainer.callback_metrics}
        found = Validated(trainer.global_step, values)
        if begins(trainer):
            self.before = found
        else:
            self.after = found

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the first step."""
        if batch_index(trainer) or trainer.log_every_n_steps in (0, 1):  # type: ignore[attr-defined]
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        for logger in trainer.loggers if metrics else []:
            logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=0)
            logger.save()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare."""
        if self.before is None or self.after is None:
            return
        shared = [name for name in _BETTER if name in self.before.metrics and name in self.after.metrics]
        if not shared:
            return
        changes = [f"{name} {self.before.metrics[name]:.4g} -> {self.after.metrics[name]:.4g}" for name in shared]
        line = f"validation, step {self.before.step} -> {self.after.step}: {', '.join(changes)}"
        decisive = shared[0]
        gain = _BETTER[decisive] * (self.after.metrics[decisive] - self.before.metrics[decisive])
        if gain >= 0 or math.isnan(gain):
            rank_zero_info(line)
            return
        lr = float(trainer.optimizers[0].param_groups[0].get("initial_lr", math.nan))
        rank_zero_warn(
            f"{line}: {decisive} is worse than before training; lower optimizer.lr ({lr:.3g}), train for fewer steps, "
            "or check that the validation data is like the training data"
        )
