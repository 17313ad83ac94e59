"""The memory and work that training will take, in two lines before its first step."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from align.algorithms.memory_estimate import advice, estimate_memory, gigabytes
from align.algorithms.module import Stage
from align.batches import FeedbackBatch, PairBatch, PromptBatch, TokenBatch
from align.plan.memory import MemoryEstimate
from align.plan.probe import free_bytes, resident_bytes


class MemoryReport(pl.Callback):
    """Prints the memory estimate of the first batch, and of the longest rows that the data allows; and FLOPs per token.

    On a CPU it is what the process holds already, the weights included, plus what a step adds.
    """

    def __init__(self) -> None:
        """Nothing printed yet."""
        self._printed = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Print it before the first step of this process."""
        if self._printed or not isinstance(pl_module, Stage):
            return
        self._printed = True
        # Mismatched rows are read without gradient, so that nothing of them is kept.
        rows = len(batch.numbers if isinstance(batch, FeedbackBatch) else batch.ids)
        longest = batch.ids.shape[1]
        tokens = computed_tokens(batch)
        device = trainer.strategy.root_device
        now = estimate_memory(pl_module, 1, tokens)
        words = ", ".join(f"{name} {gigabytes(size)}" for name, size in now.peak_parts().items())
        held = resident_bytes() if device.type == "cpu" else None
        line = f"memory estimate on {device}, first batch ({rows} rows of up to {longest} tokens): "
        line += (
            f"{gigabytes(peak_bytes(now, held))} ({words}{'' if held is None else f', process now {gigabytes(held)}'})"
        )
        context = int(getattr(getattr(trainer, "datamodule", None), "context", 0))
        most = now
        if isinstance(batch, TokenBatch | PairBatch | FeedbackBatch) and context > longest:
            most = estimate_memory(pl_module, rows, context)
            line += f"; rows of data.context, {context} tokens: {gigabytes(peak_bytes(most, held))}"
        rank_zero_info(line)
        network: Any = pl_module.network
        mean = max(1, tokens // max(1, rows))
        rank_zero_info(f"{network.flops_per_token(mean) / 1e6:.1f} MFLOP per training token in rows of {mean} tokens")
        free = free_bytes(device)
        if free is not None and step_bytes(most) > free:
            saving = advice(pl_module, rows, longest)
            hint = f"; to save memory, set {saving[0].setting}" if saving else ""
            rank_zero_warn(
                f"a step may need {gigabytes(step_bytes(most))} more, but {gigabytes(free)} are free on {device}{hint}"
            )


def computed_tokens(batch: Any) -> int:
    """Positions that the network trains on in a batch: padding included, prompts that rows share counted once."""
    return int(unread_tokens(batch))


def unread_tokens(batch: Any) -> int | torch.Tensor:
    """``computed_tokens`` without waiting for a GPU: ``[]`` int64 where a tensor has the lengths."""
    if isinstance(batch, PairBatch):
        return batch.lengths.sum() - batch.prompt_lengths.where(batch.numbers >= 0, 0).sum()
    if isinstance(batch, FeedbackBatch):
        return batch.labelled.lengths.sum()
    if isinstance(batch, TokenBatch | PromptBatch):
        return batch.ids.numel()
    shared = sum(batch.prompt_lengths) - sum(batch.prompt_lengths[:: batch.group_size])
    return int(sum(batch.lengths) - shared)


def step_bytes(estimate: MemoryEstimate) -> int:
    """What a step adds to the networks."""
    return estimate.total - estimate.parameters - estimate.frozen


def peak_bytes(estimate: MemoryEstimate, held: int | None) -> int:
    """The peak of a process that holds ``held`` bytes, networks included; None: networks and step alone."""
    return estimate.total if held is None else held + step_bytes(estimate)
