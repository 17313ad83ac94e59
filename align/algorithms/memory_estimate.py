"""The memory estimate of a stage in training, and the settings that reduce it.

The estimate itself is ``align.plan.memory``, which ``align plan`` and ``align doctor`` use before a run.
"""

from dataclasses import dataclass, replace

import torch

from align.algorithms.module import Stage
from align.algorithms.planning import live_job
from align.plan.job import Job
from align.plan.memory import MemoryEstimate, memory_of
from align.plan.precision import PRECISIONS


@dataclass(frozen=True)
class Advice:
    """A setting that saves memory."""

    setting: str
    """The setting and its value."""
    saved: int
    """Bytes saved."""
    cost: str
    """What it costs in return."""


def estimate_memory(stage: Stage, rows: int, tokens: int) -> MemoryEstimate:
    """Memory of a training step on one rank.

    Args:
        stage: with networks built and a Trainer.
        rows: B of a micro-batch on one rank.
        tokens: T, including padding.
    """
    return memory_of(live_job(stage, rows, tokens))


def advice(stage: Stage, rows: int, tokens: int, *, batch_size: int | None = None) -> list[Advice]:
    """Settings that would save memory and are not set yet, the largest saving first.

    Args:
        stage: see ``estimate_memory``.
        rows: see ``estimate_memory``.
        tokens: see ``estimate_memory``.
        batch_size: of the data, if it determines the rows of a micro-batch.
    """
    job, found = live_job(stage, rows, tokens), list[Advice]()
    now = memory_of(job)

    def saved(changed: Job) -> int:
        return now.total - memory_of(changed).total

    if rows > 1:
        more = f"trainer.accumulate_grad_batches {2 * job.accumulate}"
        if batch_size is not None and batch_size > 1:
            more = f"data.batch_size {batch_size // 2} with {more}"
        less = saved(replace(job, rows=rows // 2))
        found.append(Advice(more, less, "smaller matrix products; the gradient is the same"))
    if job.recompute != "block":
        less = saved(replace(job, recompute="block"))
        found.append(Advice("memory.activation_checkpointing block", less, "a second forward pass of each block"))
    if job.state_bits == 32:
        found.append(Advice("optimizer.state_bits 8", saved(replace(job, state_bits=8)), "rounded running means"))
    if stage.lora is None and stage.parent is not None:
        found.append(Advice("lora.rank 16", now.gradients + now.optimizer, "only low-rank updates are trained"))
    if job.frozen_bytes == 4:
        less = saved(replace(job, frozen_bytes=2))
        found.append(Advice("memory.frozen_dtype bfloat16", less, "rounded reference and rewards"))
    if job.accelerator == "cuda" and not job.precision.narrow:
        less = saved(replace(job, precision=PRECISIONS["bf16-mixed"]))
        found.append(Advice("trainer.precision bf16-mixed", less, "8-bit precision of matrix products"))
    return sorted((one for one in found if one.saved > 0), key=lambda one: -one.saved)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the machine, ran out of memory."""
    words = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in words or "out of memory" in words.lower())
    )


def explain_out_of_memory(stage: Stage, *, batch_size: int | None) -> str:
    """The memory estimate, and the three settings that save most.

    Args:
        stage: that ran out of memory, possibly before its networks were built.
        batch_size: of the data; None if it does not determine the rows of a micro-batch.
    """
    if not hasattr(stage, "network"):
        return "out of memory while the networks were built, before the first batch"
    rows, tokens = stage.batch_shape or (0, 0)
    estimate = estimate_memory(stage, rows, tokens)
    where = f"in a batch of {rows} rows x {tokens} tokens" if rows else "before the first batch"
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in estimate.peak_parts().items())
    # After a failed run the stage itself is on the CPU again.
    device = stage.trainer.strategy.root_device
    lines = [f"out of memory on {device}, {where}; estimated {gigabytes(estimate.total)}: {parts}."]
    if best := advice(stage, rows, tokens, batch_size=batch_size)[:3]:
        lines.append("To save memory, set:")
        lines += [f"  {one.setting}: about {gigabytes(one.saved)} less; cost: {one.cost}" for one in best]
    return "\n".join(lines)


def gigabytes(size: int) -> str:
    """A size in GB, or in MB below 10 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
