"""Tokens per second and model FLOPs utilisation, in the progress bar and the logs."""

import time
from typing import Any

import lightning.pytorch as pl
import torch

from align.batches import TokenBatch
from align.model.gpt import GPT, ScalarGPT
from align.plan.hardware import in_use
from align.plan.precision import running_precision


class Throughput(pl.Callback):
    """Logs ``throughput/tokens_per_s`` and ``throughput/mfu``.

    Tokens are positions that the network processed, padding included, on all ranks. MFU is their model FLOPs
    (``GPT.flops_per_token``: 6 N + 12 L D T, the PaLM convention, Chowdhery et al. 2022 appendix B) over the
    device's peak: the data sheet's for known GPUs, a matmul timed at the start elsewhere.

    Args:
        every: training batches per reading, without validation.
    """

    def __init__(self, every: int = 20) -> None:
        """Start with nothing counted."""
        if every < 1:
            raise ValueError(f"throughput.every is {every}: it must be at least 1")
        self.every = every
        self._tokens = self._batches = 0
        self._seconds = self._begun = 0.0
        self._peak = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the device's peak."""
        precision = running_precision(str(trainer.precision))
        self._peak = in_use(pl_module.device, precision).peak(precision) or 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock at the first batch of a reading and after a pause (validation, a checkpoint)."""
        if not self._begun:
            self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: TokenBatch, batch_idx: int
    ) -> None:
        """Count the batch; log when the reading is full."""
        rows, length = batch.ids.shape
        self._tokens += rows * (length - 1)
        self._batches += 1
        if self._batches < self.every:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._stop_clock()
        ranks = data_ranks(trainer)
        rate = self._tokens * ranks / self._seconds
        values = {"throughput/tokens_per_s": rate}
        if self._peak:
            network = pl_module.network
            assert isinstance(network, GPT | ScalarGPT)
            flops = network.flops_per_token(length - 1)
            values["throughput/mfu"] = rate * flops / (self._peak * trainer.world_size)
        pl_module.log_dict(values, prog_bar=True)
        self._tokens = self._batches = 0
        self._seconds = 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock: validation is not training time."""
        self._stop_clock()

    def _stop_clock(self) -> None:
        if self._begun:
            self._seconds += time.perf_counter() - self._begun
            self._begun = 0.0


def data_ranks(trainer: pl.Trainer) -> int:
    """Number of ranks with different data: devices of one tensor-parallel group share a batch."""
    sampler = trainer.distributed_sampler_kwargs
    return int(sampler["num_replicas"]) if sampler else 1
