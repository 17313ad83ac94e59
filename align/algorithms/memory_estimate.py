"""Estimated memory of a training step, and the settings that reduce it.

Weights, gradients and optimizer state are exact. Activations are those that the graph keeps on a CPU, without dropout
masks, kernels' workspaces and fragmentation: glibc's allocator can add as much again as the activations are.

Legend: B rows, T tokens, L layers, H query heads, K key/value heads, E width of one head, D width, F width inside the
feed-forward, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from align.adapters.lora import LAYERS, LoraConfig, adapters
from align.algorithms.module import Stage
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.model.layers import Recompute
from align.objectives.chunks import chunk_size
from align.training.sharding import local

_BLOCK_8BIT, _LEAST_8BIT = 256, 4096
"""Block size, and numel of the smallest parameter, with 8-bit optimizer state."""

_CODE_TABLE = 4 * 256
"""Bytes of the lookup table of a running mean's 8-bit codes."""


_IN_ATTENTION = 4
"""How many of ``LAYERS`` are in attention; the others are in the feed-forward layer"""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a training step by use, in bytes."""

    parameters: int
    """Trained parameters."""
    gradients: int
    """Gradients of the trained parameters."""
    optimizer: int
    """AdamW's running means."""
    frozen: int
    """Frozen networks, and the base weights below adapters; weights that networks share count once."""
    activations: int
    """Kept from the forward to the backward pass of a micro-batch, plus what is recomputed at a time."""
    logits: int
    """One chunk of logits with its softmax, and the gradient of the output matrix."""

    @property
    def total(self) -> int:
        """The sum."""
        return sum(vars(self).values())


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
    networks = _trained_networks(stage)
    trained = list(stage.trained())
    weights: set[nn.Parameter] = set().union(*(module.parameters() for module in _trained_modules(stage)))
    narrow = "bf16" in _precision(stage)
    recompute = stage.memory_config.activation_checkpointing
    return MemoryEstimate(
        parameters=_bytes(trained),
        gradients=_bytes(trained),
        optimizer=optimizer_bytes(trained, stage.optimizer_config.state_bits),
        frozen=_bytes(weights - set(trained)) + _bytes(_own_frozen(stage)),
        activations=sum(
            activation_bytes(
                network.config, rows, tokens, recompute=recompute, narrow=narrow, adapter=_adapter(network)
            )
            for network in networks
        ),
        logits=logits_bytes(stage.network, rows * tokens, _device(stage)) if isinstance(stage.network, GPT) else 0,
    )


def optimizer_bytes(parameters: list[nn.Parameter], state_bits: int) -> int:
    """AdamW's two running means, with the scales and code tables of 8-bit ones, and a step count for each parameter."""
    total = 0
    for parameter in parameters:
        shard = local(parameter)
        numel = shard.numel()
        total += 4  # step count
        if state_bits == 8 and numel >= _LEAST_8BIT and numel % _BLOCK_8BIT == 0:
            total += 2 * (numel + 4 * numel // _BLOCK_8BIT + _CODE_TABLE)
        else:
            total += 2 * shard.nbytes
    return total


def activation_bytes(
    config: GPTConfig,
    rows: int,
    tokens: int,
    *,
    recompute: Recompute,
    narrow: bool,
    adapter: LoraConfig | None = None,
) -> int:
    """Activations that a trunk keeps for ``rows * tokens`` positions, plus those recomputed at a time.

    Args:
        config: of the network.
        rows: B.
        tokens: T.
        recompute: see ``Block.recompute``.
        narrow: matrix products are in bfloat16.
        adapter: that trains instead of the weights, if any. With fewer targets than all, somewhat less is kept.
    """
    attention, feed = _attention_bytes(config, narrow), _feed_forward_bytes(config, narrow)
    if adapter is not None:
        # An adapted matrix also keeps A x.
        adapted = [name in (adapter.targets or LAYERS) for name in LAYERS]
        attention += (2 if narrow else 4) * adapter.rank * sum(adapted[:_IN_ATTENTION])
        feed += (2 if narrow else 4) * adapter.rank * sum(adapted[_IN_ATTENTION:])
    a_matrices, f_matrices = _matrix_bytes(config) if narrow else (0, 0)
    residual = 4 * config.width
    kept, again, matrices = {
        "none": (attention + feed, 0, a_matrices + f_matrices),
        "selective": (attention + residual, feed - residual, a_matrices),
        "block": (residual, attention + feed - residual, 0),
    }[recompute]
    # The last norm's input and output, and the gradient of the residual stream.
    ends = 4 * residual
    return rows * tokens * (config.layers * kept + again + ends) + config.layers * matrices


def _attention_bytes(config: GPTConfig, narrow: bool) -> int:
    """Bytes that a block's first norm and attention keep per token.

    Queries, keys, values and attention's output in the dtype of the products; the log-partition of each head; in
    bfloat16, a copy of each product's input, which in float32 the backward pass computes again.
    """
    size = 2 if narrow else 4
    queries = config.heads * config.resolved_head_width
    keys = config.resolved_kv_heads * config.resolved_head_width
    inputs = 3 * 2 * config.width if narrow else 0
    mixed = size * (queries * 2 + 2 * keys)
    return (
        _norm_bytes(config)
        + inputs
        + mixed
        + 4 * config.heads
        + ((8 if narrow else 4) * (queries + keys) if config.qk_norm != "none" else 0)
    )


def _feed_forward_bytes(config: GPTConfig, narrow: bool) -> int:
    """Bytes that a block's second norm and feed-forward keep per token: gate and up, or only up."""
    size, gated = 2 if narrow else 4, config.gated
    inputs = (2 if gated else 1) * 2 * config.width if narrow else 0
    return _norm_bytes(config) + inputs + size * config.resolved_ff_width * (2 if gated else 1)


def _norm_bytes(config: GPTConfig) -> int:
    """A norm's float32 input."""
    return 4 * config.width


def _matrix_bytes(config: GPTConfig) -> tuple[int, int]:
    """bfloat16 copies that autocast makes of a block's matrices: attention's, and the feed-forward's."""
    queries = config.heads * config.resolved_head_width
    keys = config.resolved_kv_heads * config.resolved_head_width
    inner = config.resolved_ff_width * (3 if config.gated else 2)
    return 4 * config.width * (queries + keys), 2 * config.width * inner


def logits_bytes(network: GPT, positions: int, device: torch.device) -> int:
    """Logits and softmax of one chunk, and two copies of a trained output matrix's gradient: unscaled, and scaled."""
    weight = network.output_weight
    chunk = min(positions, chunk_size(device))
    return 2 * 4 * chunk * weight.shape[0] + 2 * weight.nbytes * weight.requires_grad


def advice(stage: Stage, rows: int, tokens: int, *, batch_size: int | None = None) -> list[Advice]:
    """Settings that would save memory and are not set yet, the largest saving first.

    Args:
        stage: see ``estimate_memory``.
        rows: see ``estimate_memory``.
        tokens: see ``estimate_memory``.
        batch_size: of the data, if it determines the rows of a micro-batch.
    """
    now, memory = estimate_memory(stage, rows, tokens), stage.memory_config
    found = []
    accumulated = stage.trainer.accumulate_grad_batches
    if rows > 1:
        more = f"trainer.accumulate_grad_batches {2 * accumulated}"
        if batch_size is not None and batch_size > 1:
            more = f"data.batch_size {batch_size // 2} with {more}"
        found.append(Advice(more, now.activations // 2, "smaller matrix products; the gradient is the same"))
    if memory.activation_checkpointing != "block":
        narrow = "bf16" in _precision(stage)
        then = sum(
            activation_bytes(network.config, rows, tokens, recompute="block", narrow=narrow, adapter=_adapter(network))
            for network in _trained_networks(stage)
        )
        saved = now.activations - then
        found.append(Advice("memory.activation_checkpointing block", saved, "a second forward pass of each block"))
    if stage.optimizer_config.state_bits == 32:
        saved = now.optimizer - optimizer_bytes(list(stage.trained()), 8)
        found.append(Advice("optimizer.state_bits 8", saved, "rounded running means"))
    if stage.lora is None and stage.parent is not None:
        found.append(Advice("lora.rank 16", now.gradients + now.optimizer, "only low-rank updates are trained"))
    if memory.frozen_dtype == "float32":
        found.append(
            Advice("memory.frozen_dtype bfloat16", _bytes(_own_frozen(stage)) // 2, "rounded reference and rewards")
        )
    if _device(stage).type == "cuda" and _precision(stage) == "32-true":
        found.append(Advice("trainer.precision bf16-mixed", now.activations // 3, "8-bit precision of matrix products"))
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
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in vars(estimate).items())
    lines = [f"out of memory on {_device(stage)}, {where}; estimated {gigabytes(estimate.total)}: {parts}."]
    if best := advice(stage, rows, tokens, batch_size=batch_size)[:3]:
        lines.append("To save memory, set:")
        lines += [f"  {one.setting}: about {gigabytes(one.saved)} less; cost: {one.cost}" for one in best]
    return "\n".join(lines)


def _adapter(network: GPT | ScalarGPT) -> LoraConfig | None:
    return next(iter(adapters(network).values()), None)


def _trained_modules(stage: Stage) -> list[nn.Module]:
    found: list[Any] = [getattr(stage, name, None) for name in stage.trained_names]
    return [module for module in found if module is not None]


def _own_frozen(stage: Stage) -> set[nn.Parameter]:
    """Weights of frozen networks that no trained network shares: a reference may stand on the policy's base."""
    frozen = [module for name in stage.frozen_names if (module := getattr(stage, name, None)) is not None]
    shared = {parameter for module in _trained_modules(stage) for parameter in module.parameters()}
    return {parameter for module in frozen for parameter in module.parameters()} - shared


def _trained_networks(stage: Stage) -> list[GPT | ScalarGPT]:
    return [network for network in _trained_modules(stage) if isinstance(network, GPT | ScalarGPT)]


def _device(stage: Stage) -> torch.device:
    # After a failed run the stage itself is on the CPU again.
    device: torch.device = stage.trainer.strategy.root_device
    return device


def _precision(stage: Stage) -> str:
    return str(stage.trainer.precision)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes on this rank, which holds one shard of sharded weights."""
    return sum(local(parameter).nbytes for parameter in parameters)


def gigabytes(size: int) -> str:
    """A size in GB, or in MB below 10 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
