"""Says in one line what is wrong with a run, and stops it before anything that is not finite is saved."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch.optim import Optimizer

from align.callbacks.health_checks import Finding, HealthConfig, Watch
from align.callbacks.samples import validating_in_fit
from align.model.parallel import total_norm

_MAY_BE_INFINITE = ("/perplexity",)
"""Ends of names: exp(loss) overflows in the first steps of a large vocabulary; the loss itself is looked at."""


class Health(pl.Callback):
    """Watches what a run logs; findings go to the terminal and to ``health.jsonl`` in the run folder.

    Read when it is fresh: ``train/*`` at each logged step, ``rollout/*`` at the end of an iteration (an epoch),
    ``val/*`` and ``policy/*`` after a validation. Checks whose metrics a stage does not log are silent.

    A NaN or an infinity in a metric, a gradient or a weight ends the run: a gradient before it moves a weight, a metric
    and a weight before the checkpoint or the model directory is written, so that those on disk stay finite. On a GPU
    gradients and weights are fetched at logged steps and before each checkpoint only.

    Args:
        settings: thresholds.
    """

    def __init__(self, settings: HealthConfig = HealthConfig()) -> None:  # noqa: B008 (frozen)
        """Nothing read yet."""
        self.watch = Watch(settings)
        self._read_at = -1

    def state_dict(self) -> dict[str, Any]:
        """What was read so far."""
        return self.watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.watch.load_state_dict(state_dict)

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the findings up to the step that the run goes on from; a fresh run begins without any."""
        file = _file(trainer)
        if not file.is_file():
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
        """Refuse a gradient that is not finite, before it moves a weight."""
        # fp16's scaler overflows on purpose and skips such steps itself.
        if str(trainer.precision).startswith("16") or not _worth_a_look(trainer, pl_module, trainer.global_step + 1):
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(total_norm(gradients))
        if not math.isfinite(norm):
            cure = "no weight was moved by it; lower optimizer.lr, lengthen schedule.warmup_steps or look at the data"
            self._stop(trainer, "gradient norm", norm, cure)

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
        """Look at the weights once more, before the model directory is written."""
        self._refuse_weights(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to replace a checkpoint by one that is not finite."""
        parts = {name: checkpoint[name] for name in ("state_dict", "optimizer_states") if name in checkpoint}
        for name, tensor in _tensors(parts, ""):
            if not _finite(tensor):
                self._stop(trainer, name, math.nan, "the last checkpoint is from before it; lower optimizer.lr")

    def _refuse_weights(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, weight in pl_module.named_parameters():
            if weight.requires_grad and not _finite(weight.detach()):
                cure = "the last checkpoint and model directory are from before it; lower optimizer.lr"
                self._stop(trainer, f"weight {name}", math.nan, cure)

    def _read(self, trainer: pl.Trainer, prefixes: tuple[str, ...]) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefixes)}
        for name, value in metrics.items():
            if not math.isfinite(value) and not name.endswith(_MAY_BE_INFINITE):
                cure = "the last checkpoint is from before it; lower optimizer.lr, or look at the data and the reward"
                self._stop(trainer, name, value, cure)
        for finding in self.watch.read(trainer.global_step, metrics):
            rank_zero_info(f"health: step {trainer.global_step}: {finding.message}")
            _write(trainer, finding)

    def _stop(self, trainer: pl.Trainer, what: str, value: float, cure: str) -> None:
        """End the run.

        Raises:
            FloatingPointError: always.
        """
        message = f"{what} is {'not finite' if math.isnan(value) else value} at optimizer step {trainer.global_step}: "
        _write(trainer, Finding("nonfinite", what, value, math.inf, message + cure))
        raise FloatingPointError(message + cure)


def _worth_a_look(trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> bool:
    """Always on a CPU; on a GPU when its numbers are fetched for the log anyway."""
    return pl_module.device.type == "cpu" or step % max(1, trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested mappings and lists, with where it stands."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _tensors(item, f"{name}.{key}" if name else str(key))


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(_whole(tensor.isfinite().all()))


def _whole(tensor: Any) -> torch.Tensor:
    """The tensor itself, gathered if it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _file(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "health.jsonl"


@rank_zero_only
def _write(trainer: pl.Trainer, finding: Finding) -> None:
    """Append a finding; JSON has no NaN and no infinity, so they are written as text."""
    line = {"step": trainer.global_step, **finding._asdict()}
    line = {
        key: str(item) if isinstance(item, float) and not math.isfinite(item) else item for key, item in line.items()
    }
    file = _file(trainer)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
