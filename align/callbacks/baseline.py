"""What a run starts from: validation before training and the first step, and what training has made of it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from align.training.lightning_internals import batch_index, force_validation, validate_now
from align.training.trainer_state import begins, ends, validating_in_fit

_BETTER = {"val/loss": -1, "val/accuracy": 1, "policy/reward": 1}
"""Metrics of a validation that tell better from worse, the decisive ones first: 1 if higher is better, -1 if lower"""

_NOTABLE = 0.01
"""Share of a metric by which it must get worse for a warning: another order of the data changes it as much"""


class Validated(NamedTuple):
    """The metrics of one validation.

    Attributes:
        step: optimizer steps taken.
        metrics: those in ``_BETTER``, by name.
    """

    step: int
    metrics: dict[str, float]


class Baseline(pl.Callback):
    """Validates before training and after it, and compares, so that a run that makes the model worse shows.

    A new run logs ``val/*`` and ``policy/*`` at step 0, and ``train/*`` of the first step whatever
    ``trainer.log_every_n_steps`` is. A resumed run repeats neither. The last step is validated whatever the schedule,
    so that the metrics beside the final network are its own. At the end one line compares the first validation with
    the last, and warns if it is worse.

    Args:
        validate: validate before training and after the last step; each costs as much as every other validation.
    """

    def __init__(self, validate: bool = True) -> None:
        """Nothing measured yet."""
        self.validate = validate
        self.before: Validated | None = None
        self.after: Validated | None = None
        self._ending = False
        self._restore_schedule: Callable[[], None] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The first and the latest validation, and whether that of the last step is pending."""
        both = {"before": self.before, "after": self.after}
        # Plain values: checkpoints are read with weights_only.
        plain = {name: None if found is None else found._asdict() for name, found in both.items()}
        return plain | {"ending": self._restore_schedule is not None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._ending = state_dict["ending"]
        self.before, self.after = (
            None if state_dict[name] is None else Validated(**state_dict[name]) for name in ("before", "after")
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate, if this is a new run; after a run that was preempted in its last validation, repeat that."""
        if self._wanted(trainer) and begins(trainer):
            validate_now(trainer)
        if self._ending:
            self._ending, self._restore_schedule = False, force_validation(trainer)

    def _wanted(self, trainer: pl.Trainer) -> bool:
        return self.validate and trainer.enable_validation and not trainer.fast_dev_run  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics; after the last step's, restore the schedule, in case the Trainer trains again."""
        if not validating_in_fit(trainer):
            return
        values = {name: float(trainer.callback_metrics[name]) for name in _BETTER if name in trainer.callback_metrics}
        found = Validated(trainer.global_step, values)
        if begins(trainer):
            self.before = found
        else:
            self.after = found
        if self._restore_schedule is not None:
            self._restore_schedule()
            self._restore_schedule = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the first step, and have the last one validated."""
        if self._wanted(trainer) and ends(trainer):
            # Before Checkpoints asks whether a validation follows.
            self._restore_schedule = force_validation(trainer)
        if batch_index(trainer) or trainer.log_every_n_steps in (0, 1):  # type: ignore[attr-defined]
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        for logger in trainer.loggers if metrics else []:
            logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=0)
            logger.save()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare."""
        if self.before is None:
            return
        if self.after is None:
            rank_zero_info(f"no validation after step {self.before.step}: nothing to compare")
            return
        shared = [name for name in _BETTER if name in self.before.metrics and name in self.after.metrics]
        if not shared:
            return
        changes = [f"{name} {self.before.metrics[name]:.4g} -> {self.after.metrics[name]:.4g}" for name in shared]
        line = f"validation, step {self.before.step} -> {self.after.step}: {', '.join(changes)}"
        decisive = shared[0]
        gain = _BETTER[decisive] * (self.after.metrics[decisive] - self.before.metrics[decisive])
        if gain >= -_NOTABLE * abs(self.before.metrics[decisive]) or math.isnan(gain):
            rank_zero_info(line)
            return
        lr = float(trainer.optimizers[0].param_groups[0].get("initial_lr", math.nan))
        rank_zero_warn(
            f"{line}: {decisive} is worse than before training; lower optimizer.lr ({lr:.3g}), train for fewer steps, "
            "or check that the validation data is like the training data"
        )
