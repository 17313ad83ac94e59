"""A plan: everything that `align plan` says about one run on one kind of hardware."""

from dataclasses import dataclass, replace

from align.plan.compute_optimal import BESIROGLU, TOKENS_PER_PARAMETER
from align.plan.duration import Duration, Utilisation, cost_of, duration_of
from align.plan.flops import RunFlops, flops_of
from align.plan.hardware import Hardware
from align.plan.job import Job
from align.plan.memory import MemoryEstimate, largest_batch, memory_of
from align.plan.precision import COMPARED, PRECISIONS
from align.plan.strategy import strategies


@dataclass(frozen=True)
class Option:
    """A strategy and a precision, and what they need."""

    job: Job
    memory: MemoryEstimate
    fits: bool
    """Whether the peak fits into a device"""
    largest_rows: int
    """Rows of the largest micro-batch that fits"""


@dataclass(frozen=True)
class Plan:
    """What a run needs."""

    job: Job
    hardware: Hardware
    memory: MemoryEstimate
    flops: RunFlops | None
    """None: the length of the run is unknown"""
    duration: Duration | None
    """None: that, or the hardware's peak, is unknown"""
    cost: float | None
    """USD; None: no duration, or no price"""
    utilisation: Utilisation
    options: tuple[Option, ...]
    """Of the same number of devices"""

    @property
    def parameters(self) -> int:
        """Of the policy, adapters excluded."""
        return sum(weight.numel for weight in self.job.policy.base())

    @property
    def optimal_tokens(self) -> float:
        """Compute-optimal pretraining tokens, by the corrected fit."""
        return BESIROGLU.tokens(self.parameters)

    @property
    def twenty_tokens(self) -> float:
        """Compute-optimal pretraining tokens, by the rule of 20 tokens per parameter."""
        return TOKENS_PER_PARAMETER * self.parameters

    @property
    def fits(self) -> bool | None:
        """Whether the recipe's own settings fit; None: the hardware's memory is unknown."""
        return None if self.hardware.memory is None else self.memory.total <= self.hardware.memory


def plan_of(job: Job, hardware: Hardware, utilisation: Utilisation, *, process: int = 0) -> Plan:
    """Plan a run.

    Args:
        job: the run, with its strategy and precision.
        hardware: of every device.
        utilisation: of each device.
        process: bytes of a process before it has networks, on a CPU.
    """
    flops = flops_of(job)
    duration = None if flops is None else duration_of(job, flops, hardware, utilisation)
    cost = None if duration is None else cost_of(duration.total, job.strategy.devices, hardware)
    return Plan(
        job,
        hardware,
        memory_of(job, process=process),
        flops,
        duration,
        cost,
        utilisation,
        tuple(_options(job, hardware, process)),
    )


def variants(job: Job, hardware: Hardware, devices: int) -> list[Job]:
    """The run under every strategy and precision that this hardware and network allow, with the same optimizer step.

    Args:
        job: the run.
        hardware: of every device.
        devices: in all.
    """
    config, found = job.policy.config, list[Job]()
    names = dict.fromkeys((*(() if job.precision.four_bit else COMPARED), job.precision.name))
    if job.policy.lora is not None:
        names["qlora"] = None
    for strategy in strategies(
        devices, heads=config.heads, kv_heads=config.resolved_kv_heads, ff_width=config.resolved_ff_width
    ):
        for name in names:
            precision = PRECISIONS[name]
            # 4-bit weights can't be sharded (align.training.qlora).
            if not hardware.supports(precision) or (precision.four_bit and (strategy.sharded or strategy.tensor > 1)):
                continue
            rows, accumulate = _same_step(job, strategy.data)
            found.append(
                replace(
                    job,
                    strategy=strategy,
                    precision=precision,
                    rows=rows,
                    accumulate=accumulate,
                    accelerator=hardware.accelerator,
                )
            )
    return found


def _same_step(job: Job, ranks: int) -> tuple[int, int]:
    """Rows of a micro-batch and number of micro-batches, for an optimizer step of as many rows, or a few more."""
    per_rank = -(-job.global_rows // ranks)
    rows = min(job.rows, per_rank)
    return rows, -(-per_rank // rows)


def _options(job: Job, hardware: Hardware, process: int) -> list[Option]:
    if hardware.memory is None:
        return []
    found = []
    for variant in variants(job, hardware, job.strategy.devices):
        memory = memory_of(variant, process=process)
        rows = largest_batch(variant, hardware.memory, process=process)
        found.append(Option(variant, memory, memory.total <= hardware.memory, rows))
    return found
