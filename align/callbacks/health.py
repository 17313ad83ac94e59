"""Warn in one line about a run that goes wrong, and stop it before anything that is not finite is saved."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch.optim import Optimizer

from align.callbacks.health_checks import DEFAULT_CHECKS, HealthCheck, Reading
from align.training.sharding import total_norm
from align.training.trainer_state import validating_in_fit

_KEPT_FIRST = 100
"""Readings of each metric that are kept from the start of a run"""
_KEPT_LATEST = 1_000
"""Readings of each metric that are kept besides"""
_READ = ("train/", "rollout/", "val/", "policy/")
"""What the names of the metrics begin with that are read"""


class Warned(NamedTuple):
    """A finding, its check and its metric: a line of health.jsonl.

    Attributes:
        check: class name of the check; ``nonfinite`` for what ended the run.
        metric: the metric with the offending reading.
        value: see ``Finding``.
        threshold: see ``Finding``.
        message: see ``Finding``.
    """

    check: str
    metric: str
    value: float
    threshold: float
    message: str


class Monitor:
    """Keeps readings and asks the checks about each new one.

    Args:
        checks: asked in this order; of two of the same class only the later one.
        quiet_steps: optimizer steps before a check repeats its warning about a metric.
    """

    def __init__(self, checks: Sequence[HealthCheck], quiet_steps: int) -> None:
        """Start without readings.

        Raises:
            ValueError: quiet_steps is below 1, or a check reads a metric that is never read.
        """
        if quiet_steps < 1:
            raise ValueError(f"health.quiet_steps is {quiet_steps}: it must be at least 1")
        self.checks = tuple({type(check): check for check in checks}.values())
        self.quiet_steps = quiet_steps
        self.history: dict[str, list[Reading]] = {}
        self._warned: dict[str, int] = {}
        for check in self.checks:
            for name in check.metrics:
                if not name.startswith(_READ):
                    known = ", ".join(_READ)
                    raise ValueError(f"{type(check).__name__}.metrics has {name!r}: it must begin with one of {known}")
        self._watched = frozenset(name for check in self.checks for name in check.metrics)

    def read(self, step: int, metrics: Mapping[str, float]) -> list[Warned]:
        """Take in newly logged values.

        Args:
            step: optimizer steps taken.
            metrics: name to value; those that no check reads, and those that are not finite, are ignored.

        Returns:
            list[Warned]: what is wrong, without what was reported within the last ``quiet_steps``.
        """
        new = {name: value for name, value in metrics.items() if name in self._watched and math.isfinite(value)}
        for name, value in new.items():
            readings = self.history.setdefault(name, [])
            readings.append(Reading(step, value))
            del readings[_KEPT_FIRST:-_KEPT_LATEST]
        found = []
        for check in self.checks:
            for name in check.metrics:
                finding = check.find(name, self.history) if name in new else None
                if finding is not None and self._due(step, type(check).__name__, name):
                    found.append(Warned(type(check).__name__, name, *finding))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Readings and warnings so far, as JSON values."""
        return {
            "history": {name: [list(reading) for reading in readings] for name, readings in self.history.items()},
            "warned": dict(self._warned),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them, so that a resumed run compares with the same baselines."""
        self.history = {name: [Reading(*pair) for pair in readings] for name, readings in state["history"].items()}
        self._warned = dict(state["warned"])

    def _due(self, step: int, check: str, metric: str) -> bool:
        key = f"{check} {metric}"
        if key in self._warned and step - self._warned[key] < self.quiet_steps:
            return False
        self._warned[key] = step
        return True


_MAY_BE_INFINITE = ("/perplexity",)
"""Ends of names: exp(loss) overflows in the first steps of a large vocabulary; the loss itself is checked."""


class Health(pl.Callback):
    """Watches what a run logs; warnings go to the terminal and to ``health.jsonl`` in the run folder.

    Metrics are read when they are new: ``train/*`` at each logged step, ``rollout/*`` at the end of an iteration (an
    epoch), ``val/*`` and ``policy/*`` after a validation. A check whose metrics a stage does not log is silent.

    A NaN or an infinity in a metric, a gradient or a weight ends the run: in a gradient before it changes a weight, in
    a metric or a weight before the checkpoint or the model directory is written, so that those on disk stay finite. On
    a GPU gradients and weights are fetched at logged steps and before each checkpoint only.

    Args:
        checks: class names of ours or class paths, with their thresholds; of two of the same class the later one
            counts. None: every check of ours.
        quiet_steps: optimizer steps before a check repeats its warning about a metric.
    """

    def __init__(self, checks: list[HealthCheck] | None = None, quiet_steps: int = 100) -> None:
        """Start without readings.

        Raises:
            ValueError: a setting is invalid; see ``Monitor``.
        """
        self.monitor = Monitor([kind() for kind in DEFAULT_CHECKS] if checks is None else checks, quiet_steps)
        self._read_at = -1

    def state_dict(self) -> dict[str, Any]:
        """The readings so far."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the readings of the run that is resumed."""
        self.monitor.load_state_dict(state_dict)

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the warnings up to the step that is resumed from; a fresh run begins without any."""
        file = _file(trainer)
        if not file.is_file() or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        resumed = trainer.global_step > 0
        kept = [
            line
            for line in file.read_text().splitlines()
            if resumed and json.loads(line)["step"] <= trainer.global_step
        ]
        if kept:
            file.write_text("\n".join(kept) + "\n")
        else:
            file.unlink()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Refuse a gradient that is not finite, before it changes a weight."""
        # fp16's scaler overflows on purpose and skips such steps itself.
        if str(trainer.precision).startswith("16") or not _fetched(trainer, pl_module, trainer.global_step + 1):
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(total_norm(gradients))
        if not math.isfinite(norm):
            advice = "no weight was changed; lower optimizer.lr, lengthen schedule.warmup_steps or check the data"
            self._stop(trainer, "gradient norm", norm, advice)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read ``train/*`` at a logged step."""
        step = trainer.global_step
        if step == self._read_at or step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        self._read_at = step
        self._refuse_weights(trainer, pl_module)
        self._read(trainer, ("train/",))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read ``rollout/*``: an epoch of reinforcement learning is an iteration."""
        self._read(trainer, ("rollout/",))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read ``val/*`` and ``policy/*``."""
        if validating_in_fit(trainer):
            self._refuse_weights(trainer, pl_module)
            self._read(trainer, ("val/", "policy/"))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the weights once more, before the model directory is written."""
        self._refuse_weights(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to replace a checkpoint by one that is not finite."""
        parts = {name: checkpoint[name] for name in ("state_dict", "optimizer_states") if name in checkpoint}
        for name, tensor in _tensors(parts, ""):
            if not _finite(tensor):
                self._stop(trainer, name, math.nan, "the last checkpoint is finite; lower optimizer.lr")

    def _refuse_weights(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, weight in pl_module.named_parameters():
            if weight.requires_grad and not _finite(weight.detach()):
                advice = "the last checkpoint and model directory are finite; lower optimizer.lr"
                self._stop(trainer, f"weight {name}", math.nan, advice)

    def _read(self, trainer: pl.Trainer, prefixes: tuple[str, ...]) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefixes)}
        for name, value in metrics.items():
            if not math.isfinite(value) and not name.endswith(_MAY_BE_INFINITE):
                advice = "the last checkpoint is finite; lower optimizer.lr, or check the data and the reward"
                self._stop(trainer, name, value, advice)
        for warned in self.monitor.read(trainer.global_step, metrics):
            rank_zero_info(f"health: step {trainer.global_step}: {warned.message}")
            _write(trainer, warned)

    def _stop(self, trainer: pl.Trainer, what: str, value: float, advice: str) -> None:
        """End the run.

        Raises:
            FloatingPointError: always.
        """
        message = f"{what} is {'not finite' if math.isnan(value) else value} at optimizer step {trainer.global_step}: "
        _write(trainer, Warned("nonfinite", what, value, math.inf, message + advice))
        raise FloatingPointError(message + advice)


def _fetched(trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> bool:
    """Whether to check this step: always on a CPU; on a GPU where values are fetched for the log anyway."""
    return pl_module.device.type == "cpu" or step % max(1, trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested mappings and lists, with its path."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _tensors(item, f"{name}.{key}" if name else str(key))


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(_gathered(tensor.isfinite().all()))


def _gathered(tensor: Any) -> torch.Tensor:
    """The tensor itself, gathered if it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _file(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "health.jsonl"


@rank_zero_only
def _write(trainer: pl.Trainer, warned: Warned) -> None:
    """Append a line; JSON has no NaN and no infinity, so they are written as text."""
    line = {"step": trainer.global_step, **warned._asdict()}
    line = {
        key: str(item) if isinstance(item, float) and not math.isfinite(item) else item for key, item in line.items()
    }
    file = _file(trainer)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
