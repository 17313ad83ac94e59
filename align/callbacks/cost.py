"""The cost of a stage in its model's manifest: tokens, FLOPs, seconds, memory, labels and samples."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from align.batches import FeedbackBatch, PairBatch, PromptBatch, TokenBatch
from align.callbacks.throughput import data_ranks
from align.io.manifest import read_manifest, write_manifest
from align.io.memory import peak_memory_mib
from align.model.gpt import GPT, ScalarGPT

_TOTALS = ("tokens_trained", "labels", "wall_seconds", "cpu_seconds")
_COUNTS = ("rows", *_TOTALS)


class Cost(pl.Callback):
    """Adds ``cost`` to the model directory's align.json when training ends.

    Counted over all ranks and, in a run that was resumed, from its beginning:

    - ``tokens_trained``: tokens of every optimizer step; of pairs and responses without padding, prompts included;
    - ``samples``, ``tokens_sampled``: responses sampled for training (rollouts, not validation);
    - ``labels``: preference pairs, or responses with feedback, read in the first epoch;
    - ``flops``: ``GPT.flops_per_token`` for each trained token and trained network, a third of it for each token
      sampled or read by a frozen network (a forward pass without its backward), a teacher by its own size; matrices
      frozen under adapters have no gradient of their own, two thirds of the work;
    - ``wall_seconds``, ``cpu_seconds`` (all threads, rank 0), validation included; ``peak_memory_mib`` (rank 0): most
      resident memory, on a GPU most allocated memory; None where the system does not report it (Windows).
    """

    def __init__(self) -> None:
        """Nothing counted yet."""
        self._total = dict.fromkeys(_COUNTS, 0.0)
        # Kept on the device until they are needed: reading them with every batch would make a GPU wait.
        self._unread: dict[str, Any] = {"tokens_trained": 0, "labels": 0}
        self._wall = self._cpu = 0.0
        self._peak: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The totals so far."""
        self._stop_clocks()
        for name, count in self._unread.items():
            self._total[name] += int(count)
            self._unread[name] = 0
        measured = [peak for peak in (self._peak, _memory_mib()) if peak is not None]
        return {**self._total, "peak_memory_mib": max(measured, default=None)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._total = {name: state_dict[name] for name in _COUNTS}
        self._unread = dict.fromkeys(self._unread, 0)
        self._peak = state_dict["peak_memory_mib"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks and reset the peak memory."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        _forget_peak()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch."""
        ranks = data_ranks(trainer)
        trained = batch.labelled if isinstance(batch, FeedbackBatch) else batch
        self._total["rows"] += len(trained.ids) * ranks
        if isinstance(batch, PairBatch | FeedbackBatch | PromptBatch):
            self._unread["tokens_trained"] += trained.lengths.sum() * ranks
            if trainer.current_epoch == 0 and not isinstance(batch, PromptBatch):
                self._unread["labels"] += (batch.numbers >= 0).sum() * ranks
        else:
            tokens = batch.ids.numel() if isinstance(batch, TokenBatch) else sum(batch.lengths)
            self._total["tokens_trained"] += tokens * ranks

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the totals into the manifest."""
        directory = Path(trainer.default_root_dir) / "model"
        if not trainer.is_global_zero or trainer.fast_dev_run or not (directory / "align.json").is_file():  # type: ignore[attr-defined]
            return
        write_manifest(directory, read_manifest(directory) | {"cost": self.cost(pl_module)})

    def cost(self, module: pl.LightningModule) -> dict[str, float | None]:
        """The fields of the manifest."""
        work = dict.fromkeys(("samples", "tokens_sampled", "tokens_read", "tokens_trained", "flops"), 0)
        work |= getattr(module, "work", {})
        network = module.network
        assert isinstance(network, GPT | ScalarGPT)
        learning = 1 + isinstance(getattr(module, "value", None), ScalarGPT)
        trained = self.state_dict()
        trained["tokens_trained"] += work["tokens_trained"]
        peak = trained["peak_memory_mib"]
        row = round(trained["tokens_trained"] / max(1, trained["rows"]))
        flops = network.flops_per_token(row) * trained["tokens_trained"] * learning
        flops += network.flops_per_token(row, forward_only=True) * (work["tokens_read"] + work["tokens_sampled"])
        flops += work["flops"]
        return {
            **{name: round(trained[name], 2) for name in _TOTALS},
            "tokens_sampled": work["tokens_sampled"],
            "samples": work["samples"],
            "flops": flops,
            "peak_memory_mib": None if peak is None else round(peak, 1),
        }

    def _stop_clocks(self) -> None:
        """Add the time since the last reading."""
        if not self._wall:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        self._total["wall_seconds"] += wall - self._wall
        self._total["cpu_seconds"] += cpu - self._cpu
        self._wall, self._cpu = wall, cpu


def _memory_mib() -> float | None:
    """Most memory that this process has held, MiB; None where the system does not report it."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_mib()


def _forget_peak() -> None:
    """A pipeline runs its stages in one process: where Linux lets us, each begins with a peak of its own."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
