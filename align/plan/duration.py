"""How long a run takes: FLOPs over the speed that the hardware reaches, communication, and decoding.

MFU (model FLOPs utilisation) is the share of the hardware's peak that model FLOPs reach (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B). Validation, loading and checkpoints are excluded.

Legend: n devices, D width, N positions of a micro-batch.
"""

from dataclasses import dataclass

from align.plan.flops import RunFlops, flops_per_token
from align.plan.hardware import Hardware
from align.plan.job import Job
from align.plan.parameters import Weight


@dataclass(frozen=True)
class Utilisation:
    """The share of its peak that a device reaches, with its source."""

    mfu: float
    """In (0, 1]"""
    source: str
    seconds_per_parameter: float = 0.0
    """Of the optimizer's step; 0: included in ``mfu``"""
    decode_seconds: float | None = None
    """Measured seconds of a decoding step of all rows of a rollout; None: not measured"""

    def __post_init__(self) -> None:
        """Reject what no hardware can reach."""
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is {self.mfu}; it must be above 0 and at most 1")


ASSUMED = Utilisation(
    0.40, "assumed: Llama 3's pretraining reached 0.38 to 0.43 (Grattafiori et al. 2024, arXiv:2407.21783, table 4)"
)
"""Where neither --mfu nor a measurement is given: small networks and short rows reach less"""


@dataclass(frozen=True)
class Duration:
    """Seconds of a run."""

    training: float
    """Forward and backward passes, recomputation included"""
    optimizer: float
    """Steps of the optimizer, where they were measured"""
    communication: float
    """What devices wait for each other beyond what overlaps with computation"""
    sampling: float
    """Rollouts: prompts and tokens"""
    reading: float
    """Forward passes alone"""

    @property
    def total(self) -> float:
        """The sum."""
        return self.training + self.optimizer + self.communication + self.sampling + self.reading

    def parts(self) -> dict[str, float]:
        """Seconds by name, without what is 0."""
        return {name: seconds for name, seconds in vars(self).items() if seconds}


def duration_of(job: Job, flops: RunFlops, hardware: Hardware, utilisation: Utilisation) -> Duration | None:
    """Seconds of a run; None if the hardware's peak is unknown.

    Args:
        job: the run.
        flops: of the whole run, over all devices.
        hardware: of every device.
        utilisation: of each device.
    """
    peak = hardware.peak(job.precision)
    if peak is None:
        return None
    reached = peak * utilisation.mfu * job.strategy.devices
    training = (sum(flops.training.values()) + flops.recomputation) / reached
    steps = job.volume.steps or 0
    numel = sum(job.strategy.local(w) for network in job.trained for w in network.trained_weights())
    return Duration(
        training=training,
        optimizer=steps * numel * utilisation.seconds_per_parameter,
        communication=_communication(job, hardware, training, steps),
        sampling=_sampling(job, flops, hardware, utilisation, reached),
        reading=sum(flops.reading.values()) / reached,
    )


def _communication(job: Job, hardware: Hardware, training: float, steps: int) -> float:
    """Seconds that devices wait for each other; 0 where the interconnect is unknown.

    Gradients are reduced, and FSDP2's weights gathered, while the network computes: only what takes longer counts.
    Tensor parallelism adds up activations, which nothing overlaps (Shoeybi et al. 2019, arXiv:1909.08053, section 3):
    two all-reduces of ``[N, D]`` per block in the forward pass and two in the backward pass. An all-reduce moves
    2 (n - 1) / n of its bytes through each device, a gather or a scatter half of that.
    """
    strategy, links = job.strategy, hardware.interconnect
    if strategy.devices == 1 or links is None:
        return 0.0
    one_way = links / 2
    overlapped = waited = 0.0
    for network in job.trained:
        weights = network.trained_weights()
        if strategy.data > 1:
            share = (strategy.data - 1) / strategy.data
            gradients = _bytes(weights, job)
            if strategy.sharded:
                everything = _bytes([*network.base(), *network.adapter()], job)
                overlapped += share * (2 * everything * job.accumulate + gradients * job.accumulate) / one_way
            else:
                overlapped += 2 * share * gradients / one_way
        if strategy.tensor > 1 and not network.head_only:
            share = (strategy.tensor - 1) / strategy.tensor
            stream = job.precision.product_bytes * job.rows * job.tokens * network.config.width
            waited += job.accumulate * 4 * network.config.layers * 2 * share * stream / one_way
    return max(0.0, steps * overlapped - training) + steps * waited


def _bytes(weights: list[Weight], job: Job) -> int:
    return job.precision.weight_bytes * sum(job.strategy.whole(weight) for weight in weights)


def _sampling(job: Job, flops: RunFlops, hardware: Hardware, utilisation: Utilisation, reached: float) -> float:
    """Seconds of prefill and decoding.

    A decoding step reads all weights and, on average, half of the cache: it takes at least as long as that takes.
    """
    rollout, iterations = job.rollout, job.volume.iterations
    if rollout is None or iterations is None:
        return 0.0
    rows = -(-rollout.episodes // job.strategy.data)
    per_token = flops_per_token(job.policy, round(job.volume.row_tokens), forward_only=True).total
    prefill = rollout.prompt_tokens * rollout.episodes * per_token / reached
    # Steps go on until the longest response ends; a finished row drops out.
    if utilisation.decode_seconds is not None:
        return iterations * (prefill + rollout.max_new_tokens * utilisation.decode_seconds)
    compute = rollout.episodes * rollout.response_tokens * per_token / reached
    if hardware.bandwidth is None:
        return iterations * (prefill + compute)
    config, size = job.policy.config, 2 if rollout.narrow or job.precision.narrow else job.precision.weight_bytes
    weights = size * sum(job.strategy.whole(w) for w in job.policy.base()) if job.policy.base() else 0
    slots = rollout.prompt_tokens + rollout.response_tokens / 2
    cache = 2 * size * config.layers * rows * config.resolved_kv_heads * config.resolved_head_width * slots
    moved = rollout.max_new_tokens * (weights + cache / job.strategy.tensor) / hardware.bandwidth
    return iterations * (prefill + max(compute, moved))


def cost_of(seconds: float, devices: int, hardware: Hardware) -> float | None:
    """USD at the table's price; None without one."""
    return None if hardware.price is None else seconds / 3600 * devices * hardware.price
