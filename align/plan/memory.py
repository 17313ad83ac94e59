"""Peak memory of a device, by use.

Weights, gradients and optimizer state are exact. Activations are those that the graph keeps. The workspace stands for
temporaries of the backward pass and memory that an allocator doesn't return.

A run with rollouts peaks in one of two phases: while it updates, or while it samples and scores.

Legend: V vocabulary, D width, N positions of a micro-batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch

from align.model.config import GPTConfig
from align.objectives.chunks import chunk_size
from align.plan.activations import activation_bytes, block_bytes
from align.plan.job import Job, PlannedNetwork
from align.plan.parameters import Weight
from align.plan.precision import FOUR_BIT_BYTES

_BLOCK_8BIT, _LEAST_8BIT = 256, 4096
"""Block size, and numel of the smallest parameter, with 8-bit optimizer state."""

_CODE_TABLE = 4 * 256
"""Bytes of the lookup table of a running mean's 8-bit codes."""

_WORKSPACE_BLOCKS = {"cpu": 6}
"""Workspace on a CPU, in units of the activations of one block. benchmarks/memory_activations.py gives 4.8 to 8.0
(docs/precision_memory.md); most of it is freed memory that glibc keeps."""

_WORKSPACE_ELSEWHERE = 1
"""Derived, not measured: at most, the gradients of all activations of one block are alive at a time"""

_READ_AT_ONCE = {"cpu": 2048}
"""Positions of a forward pass over a rollout; see ``align.model.response_states``"""

_READ_ELSEWHERE = 32768

_LOGITS_COPIES = 3
"""Tensors ``[rows, V]`` float32 of a decoding step: logits, log-softmax, and its cumulative sum"""

HELD = ("process", "parameters", "gradients", "optimizer", "frozen")
"""Parts that are there in both phases"""

UPDATE = ("gathered", "activations", "logits", "workspace")
"""Parts of the update"""

ROLLOUT = ("kv_cache", "sampler", "scoring")
"""Parts of sampling and scoring"""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one device by use, in bytes."""

    parameters: int
    """Trained parameters"""
    gradients: int
    """Gradients of the trained parameters"""
    optimizer: int
    """The optimizer's running means"""
    frozen: int
    """Frozen networks, and the base weights below adapters; weights that networks share count once"""
    activations: int
    """Kept from the forward to the backward pass of a micro-batch, plus what is recomputed at a time"""
    logits: int
    """One chunk of logits with its softmax, and the gradient of the output matrix"""
    workspace: int = 0
    """Temporaries of the backward pass, and memory that the allocator doesn't return"""
    gathered: int = 0
    """FSDP2: unsharded weights and gradients of the blocks that run, and of embeddings and output matrix"""
    kv_cache: int = 0
    """Keys and values of a rollout's rows"""
    sampler: int = 0
    """Weights that are packed, and with FSDP2 gathered, for sampling, and the logits of a decoding step"""
    scoring: int = 0
    """One block's activations while rows of a rollout are read, and their hidden states"""
    process: int = 0
    """Python and its libraries on a CPU; 0 elsewhere"""

    @property
    def update(self) -> int:
        """What an update adds."""
        return sum(getattr(self, name) for name in UPDATE)

    @property
    def rollout(self) -> int:
        """What sampling or scoring adds, whichever is more."""
        return max(self.kv_cache + self.sampler, self.scoring)

    @property
    def held(self) -> int:
        """What is there all the time."""
        return sum(getattr(self, name) for name in HELD)

    @property
    def total(self) -> int:
        """The peak."""
        return self.held + max(self.update, self.rollout)

    def parts(self) -> dict[str, int]:
        """The parts that are not 0, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name)}

    def peak_parts(self) -> dict[str, int]:
        """The parts of the phase with the peak: their sum is ``total``."""
        phase: tuple[str, ...] = UPDATE
        if self.update < self.rollout:
            phase = ("kv_cache", "sampler") if self.kv_cache + self.sampler >= self.scoring else ("scoring",)
        return {name: size for name in (*HELD, *phase) if (size := getattr(self, name))}


def memory_of(job: Job, *, process: int = 0) -> MemoryEstimate:
    """Peak memory of one device.

    Args:
        job: the run.
        process: bytes of a process before it has networks.
    """
    trained = [
        (weight, _trained_bytes(network, job)) for network in job.trained for weight in network.trained_weights()
    ]
    local = [(job.strategy.local(weight), size) for weight, size in trained]
    return MemoryEstimate(
        parameters=sum(numel * size for numel, size in local),
        gradients=sum(numel * size for numel, size in local),
        optimizer=_optimizer(job, trained),
        frozen=sum(_frozen_bytes(network, job) for network in job.networks),
        activations=_activations(job),
        logits=_logits(job),
        workspace=_workspace(job),
        gathered=_gathered(job),
        **_rollout(job),
        process=process,
    )


def optimizer_bytes(sizes: Iterable[tuple[int, int]], state_bits: int) -> int:
    """AdamW's two running means, with the scales and code tables of 8-bit ones, and a step count for each parameter.

    Args:
        sizes: elements on this device, and bytes of each, for each parameter.
        state_bits: 32 (the parameter's dtype) or 8.
    """
    total = 0
    for numel, size in sizes:
        total += 4  # step count
        if state_bits == 8 and numel >= _LEAST_8BIT and numel % _BLOCK_8BIT == 0:
            total += 2 * (numel + 4 * numel // _BLOCK_8BIT + _CODE_TABLE)
        else:
            total += 2 * size * numel
    return total


def logits_bytes(config: GPTConfig, positions: int, *, accelerator: str, trained: bool, size: int = 4) -> int:
    """Logits and softmax of one chunk, and two copies of a trained output matrix's gradient: unscaled, and scaled.

    Args:
        config: of the network.
        positions: N.
        accelerator: cpu, cuda or mps, which decides the size of a chunk.
        trained: whether the output matrix is trained.
        size: bytes of one of its elements.
    """
    chunk = min(positions, chunk_size(torch.device(accelerator)))
    return 2 * 4 * chunk * config.vocab_size + 2 * size * config.vocab_size * config.width * trained


def largest_batch(job: Job, memory: int, *, process: int = 0) -> int:
    """Rows of the largest micro-batch that fits; 0 if not even one row does.

    Args:
        job: the run; its rows don't matter.
        memory: bytes of a device.
        process: as for ``memory_of``.
    """

    def fits(rows: int) -> bool:
        return memory_of(replace(job, rows=rows), process=process).total <= memory

    if not fits(1):
        return 0
    most = 2
    while fits(most) and most < 1 << 20:
        most *= 2
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least


# Parts.


def _optimizer(job: Job, trained: Sequence[tuple[Weight, int]]) -> int:
    local = [(job.strategy.local(weight), size) for weight, size in trained]
    if not job.muon:
        return optimizer_bytes(local, job.state_bits)
    by_muon = [weight.block and weight.matrix for weight, _ in trained]
    others = [pair for pair, muon in zip(local, by_muon, strict=True) if not muon]
    means = sum(numel * size for (numel, size), muon in zip(local, by_muon, strict=True) if muon)
    return means + optimizer_bytes(others, job.state_bits)


def _trained_bytes(network: PlannedNetwork, job: Job) -> int:
    # Adapters and heads are float32 whatever the base is.
    return 4 if network.lora is not None else job.precision.weight_bytes


def _frozen_bytes(network: PlannedNetwork, job: Job) -> int:
    return sum(round(job.strategy.local(w) * _element_bytes(w, network, job)) for w in network.frozen_weights())


def _element_bytes(weight: Weight, network: PlannedNetwork, job: Job) -> float:
    """Bytes per element of a weight."""
    if weight.part == "adapters":
        return 4
    if not network.trained:
        return min(job.frozen_bytes, job.precision.weight_bytes)
    if network.lora is None or weight.part == "head":
        return _trained_bytes(network, job)
    return FOUR_BIT_BYTES if job.precision.four_bit and weight.base else job.base_bytes


def _whole_bytes(weights: Sequence[Weight], network: PlannedNetwork, job: Job) -> int:
    """Of unsharded weights, as one device computes with them."""
    return sum(round(job.strategy.whole(w) * _element_bytes(w, network, job)) for w in weights)


def _activations(job: Job) -> int:
    # In float64 all of them are twice as wide.
    wide = job.precision.weight_bytes // 4 if job.precision.products == "float64" else 1
    return wide * sum(
        activation_bytes(
            network.config,
            job.rows,
            job.tokens,
            recompute=job.recompute,
            narrow=job.precision.narrow,
            adapter=network.lora,
            tensor=job.strategy.tensor,
        )
        for network in job.trained
        if not network.head_only
    )


def _logits(job: Job) -> int:
    policy = job.policy
    if policy.scalar:
        return 0
    return logits_bytes(
        policy.config,
        job.rows * job.tokens,
        accelerator=job.accelerator,
        trained=policy.lora is None,
        size=job.precision.weight_bytes,
    )


def _one_block(network: PlannedNetwork, job: Job) -> int:
    """Activations of one block, per token."""
    tensor = job.strategy.tensor
    kept = block_bytes(network.config, narrow=job.precision.narrow, adapter=network.lora, tensor=tensor)
    return kept.attention + kept.feed_forward


def _workspace(job: Job) -> int:
    blocks = _WORKSPACE_BLOCKS.get(job.accelerator, _WORKSPACE_ELSEWHERE)
    return max(blocks * job.rows * job.tokens * _one_block(network, job) for network in job.trained)


def _gathered(job: Job) -> int:
    """Weights that FSDP2 unshards: two blocks (one is prefetched), and all that is outside blocks, with gradients."""
    if job.strategy.shards == 1:
        return 0
    roots, blocks = 0, []
    for network in job.networks:
        if network.shares_base or network.head_only:
            continue
        weights = network.base() + network.adapter()
        inside = [weight for weight in weights if weight.block]
        copies = 2 if network.trained and network.lora is None else 1
        block = _whole_bytes(inside, network, job) // network.config.layers
        blocks.append((1 + copies) * block)
        roots += copies * _whole_bytes([weight for weight in weights if not weight.block], network, job)
    return roots + max(blocks)


def _rollout(job: Job) -> dict[str, int]:
    rollout, config = job.rollout, job.policy.config
    if rollout is None:
        return {}
    rows = -(-rollout.episodes // job.strategy.data)
    slots = min(config.context, rollout.longest_prompt + rollout.max_new_tokens)
    size = 2 if rollout.narrow or job.precision.narrow else job.precision.weight_bytes
    keys = config.resolved_kv_heads * config.resolved_head_width // job.strategy.tensor
    weights = job.policy.base()
    packs = not job.precision.four_bit and job.strategy.tensor == 1
    matrices = sum(weight.numel for weight in weights if weight.base) + config.vocab_size * config.width
    sampler = packs * size * matrices + _LOGITS_COPIES * 4 * rows * config.vocab_size
    if job.strategy.shards > 1:
        sampler += _whole_bytes(weights, job.policy, job)
    most = _READ_AT_ONCE.get(job.accelerator, _READ_ELSEWHERE)
    positions = rows * slots if job.strategy.shards > 1 else min(rows * slots, most)
    readers = [network for network in job.networks if not network.head_only]
    scoring = positions * max(_one_block(network, job) for network in readers)
    scoring += round(rows * rollout.response_tokens) * config.width * 4
    if job.strategy.shards > 1:
        scoring += _whole_bytes(weights, job.policy, job)
    if rollout.elsewhere:
        return {"scoring": scoring}
    return {"kv_cache": 2 * size * config.layers * rows * keys * slots, "sampler": sampler, "scoring": scoring}
