"""Search for the cheapest configuration that fits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from align.model.layers import Recompute
from align.plan.duration import Duration, Utilisation, cost_of, duration_of
from align.plan.flops import flops_of
from align.plan.hardware import Hardware
from align.plan.job import Job
from align.plan.memory import MemoryEstimate, largest_batch, memory_of
from align.plan.plan import variants

DEVICES = (1, 2, 4, 8)
"""Devices of one machine that are tried"""

_RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "block")


@dataclass(frozen=True)
class Candidate:
    """A configuration that fits, with the optimizer step of the recipe."""

    hardware: Hardware
    job: Job
    memory: MemoryEstimate
    duration: Duration
    cost: float | None
    """USD; None: no price"""


def sweep(job: Job, devices: Sequence[Hardware], counts: Sequence[int], utilisation: Utilisation) -> list[Candidate]:
    """Configurations that fit: those with a price first, the cheapest first; equal ones by time.

    Rows of a micro-batch are as many as fit, and micro-batches as many as the recipe's optimizer step then needs.
    Precisions that lose updates or need another recipe are left out: bf16-true and QLoRA, unless the recipe has them.

    Args:
        job: the run.
        devices: kinds of hardware to try.
        counts: numbers of devices to try.
        utilisation: of each device, whatever the configuration.
    """
    found = [one for hardware in devices for count in counts for one in _candidates(job, hardware, count, utilisation)]
    return sorted(found, key=lambda one: (one.cost is None, one.cost or 0.0, one.duration.total, one.memory.total))


def _candidates(job: Job, hardware: Hardware, count: int, utilisation: Utilisation) -> Iterator[Candidate]:
    if hardware.memory is None:
        return
    for variant in variants(job, hardware, count):
        if variant.precision.name not in ("32-true", "bf16-mixed", job.precision.name):
            continue
        if job.rollout is not None and job.rollout.episodes % (job.rollout.group_size * variant.strategy.data):
            continue
        for recompute in _RECOMPUTE:
            fitted = _fitted(replace(variant, recompute=recompute), hardware.memory, job.global_rows)
            if fitted is None:
                continue
            flops = flops_of(fitted)
            duration = None if flops is None else duration_of(fitted, flops, hardware, utilisation)
            if duration is not None:
                cost = cost_of(duration.total, count, hardware)
                yield Candidate(hardware, fitted, memory_of(fitted), duration, cost)
            break  # more recomputation only takes longer


def _fitted(job: Job, memory: int, global_rows: int) -> Job | None:
    """The run with as many rows at a time as fit; None if not even one does."""
    per_rank = -(-global_rows // job.strategy.data)
    most = min(per_rank, largest_batch(job, memory))
    if most < 1:
        return None
    accumulate = -(-per_rank // most)
    return replace(job, rows=-(-per_rank // accumulate), accumulate=accumulate)
