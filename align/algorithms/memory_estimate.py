"""What a training step of a stage holds in memory, estimated, and which settings make it smaller.

Exact for weights, gradients and the optimizer's state. Activations are counted as the graph keeps them on a CPU,
without dropout's masks, what kernels use while they run and what an allocator wastes.

Legend: B rows, T tokens, L layers, H query heads, K key/value heads, E width of one head, D width, F width inside the
feed-forward, V vocabulary.
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from align.algorithms.module import Stage
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.model.layers import Recompute
from align.objectives.chunks import chunk_size
from align.training.sharding import local

_BLOCK_8BIT, _LEAST_8BIT = 256, 4096
"""Numbers of a block, and of the smallest parameter whose means are kept in 8 bits"""

_CODE_TABLE = 4 * 256
"""Bytes of the table that a mean's 8-bit codes point into"""


@dataclass(frozen=True)
class Footprint:
    """Bytes."""

    parameters: int
    """Of the networks that are trained, frozen parts included"""
    gradients: int
    """Of what the optimizer moves"""
    optimizer: int
    """Both running means"""
    frozen: int
    """Networks that are never trained"""
    activations: int
    """Kept from forward to backward for one micro-batch, and what the backward pass makes again at once"""
    logits: int
    """One chunk of them with its softmax, and the gradient of the output matrix"""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Advice:
    """A setting that makes a step smaller."""

    setting: str
    """What to set"""
    gain: int
    """Bytes"""
    price: str
    """What it costs"""


def footprint(stage: Stage, rows: int, tokens: int) -> Footprint:
    """What a step of a stage whose networks are built holds.

    Args:
        stage: its settings, networks and Trainer's precision count.
        rows: B of a micro-batch on one rank.
        tokens: T, padding included.
    """
    networks = _trained_networks(stage)
    moved = [parameter for parameter in stage.trained() if parameter.requires_grad]
    frozen = [module for name in stage.frozen_names if (module := getattr(stage, name, None)) is not None]
    weights: set[nn.Parameter] = set().union(*(module.parameters() for module in _trained_modules(stage)))
    narrow = "bf16" in _precision(stage)
    what = stage.memory_config.activation_checkpointing
    return Footprint(
        parameters=_bytes(weights),
        gradients=_bytes(moved),
        optimizer=optimizer_bytes(moved, stage.optimizer_config.state_bits),
        # A reference may stand on the weights below an adapter.
        frozen=_bytes({p for module in frozen for p in module.parameters()} - weights),
        activations=sum(
            activation_bytes(network.config, rows, tokens, recompute=what, narrow=narrow) for network in networks
        ),
        logits=logits_bytes(stage.network, rows * tokens, _device(stage)) if isinstance(stage.network, GPT) else 0,
    )


def optimizer_bytes(parameters: list[nn.Parameter], state_bits: int) -> int:
    """Of AdamW's two running means, their scales and code tables, and one step count, for each parameter."""
    total = 0
    for parameter in parameters:
        here = local(parameter)
        numbers = here.numel()
        total += 4  # steps
        if state_bits == 8 and numbers >= _LEAST_8BIT and numbers % _BLOCK_8BIT == 0:
            total += 2 * (numbers + 4 * numbers // _BLOCK_8BIT + _CODE_TABLE)
        else:
            total += 2 * here.nbytes
    return total


def activation_bytes(config: GPTConfig, rows: int, tokens: int, *, recompute: Recompute, narrow: bool) -> int:
    """What a trunk keeps of ``rows * tokens`` places, and of one part of a block while it is made again.

    Args:
        config: the network's shape.
        rows: B.
        tokens: T.
        recompute: see ``Block.recompute``.
        narrow: products are bfloat16.
    """
    attention, feed = _attention_bytes(config, narrow), _feed_forward_bytes(config, narrow)
    a_matrices, f_matrices = _matrix_bytes(config) if narrow else (0, 0)
    residual = 4 * config.width
    kept, again, matrices = {
        "none": (attention + feed, 0, a_matrices + f_matrices),
        "selective": (attention + residual, feed - residual, a_matrices),
        "block": (residual, attention + feed - residual, 0),
    }[recompute]
    # The last norm's input and output, and the gradients that come back through the residual stream.
    ends = 4 * residual
    return rows * tokens * (config.layers * kept + again + ends) + config.layers * matrices


def _attention_bytes(config: GPTConfig, narrow: bool) -> int:
    """Kept of a token by a block's first norm and attention.

    Queries, keys, values and what attention makes of them, in the products' type; with rope the latter once more, in
    another order; each head's log-partition. bfloat16 products take a copy of their input each.
    """
    size = 2 if narrow else 4
    queries = config.heads * config.resolved_head_width
    keys = config.resolved_kv_heads * config.resolved_head_width
    inputs = 3 * 2 * config.width if narrow else 4 * config.width
    mixed = size * (queries * (3 if config.positions == "rope" else 2) + 2 * keys)
    return _norm_bytes(config) + inputs + mixed + 4 * config.heads + (8 * (queries + keys) if config.qk_norm else 0)


def _feed_forward_bytes(config: GPTConfig, narrow: bool) -> int:
    """Kept of a token by a block's second norm and feed-forward: gate, silu(gate), up and product, or up and gelu."""
    size, gated = 2 if narrow else 4, config.feed_forward == "swiglu"
    inputs = (2 if gated else 1) * 2 * config.width if narrow else 4 * config.width
    return _norm_bytes(config) + inputs + size * config.resolved_ff_width * (4 if gated else 2)


def _norm_bytes(config: GPTConfig) -> int:
    """A norm's input; an RMSNorm's quotient too, which a CUDA kernel does not keep. The residual stream is float32."""
    return 4 * config.width * (2 if config.norm == "rmsnorm" else 1)


def _matrix_bytes(config: GPTConfig) -> tuple[int, int]:
    """bfloat16 copies of a block's matrices, which autocast makes: of attention, and of the feed-forward."""
    queries = config.heads * config.resolved_head_width
    keys = config.resolved_kv_heads * config.resolved_head_width
    inner = config.resolved_ff_width * (3 if config.feed_forward == "swiglu" else 2)
    return 4 * config.width * (queries + keys), 2 * config.width * inner


def logits_bytes(network: GPT, positions: int, device: torch.device) -> int:
    """Logits and softmax of one chunk, and a trained output matrix's gradient twice: made going forward, and scaled."""
    weight = network.output_weight
    chunk = min(positions, chunk_size(device))
    return 2 * 4 * chunk * weight.shape[0] + 2 * weight.nbytes * weight.requires_grad


def advice(stage: Stage, rows: int, tokens: int, *, batch_size: int | None = None) -> list[Advice]:
    """The settings that would help, the one that helps most first; only those that are not set yet.

    Args:
        stage: as for ``footprint``.
        rows: the same.
        tokens: the same.
        batch_size: the data's, where it decides the rows of a micro-batch.
    """
    now, memory = footprint(stage, rows, tokens), stage.memory_config
    found = []
    accumulated = stage.trainer.accumulate_grad_batches
    if rows > 1:
        more = f"trainer.accumulate_grad_batches {2 * accumulated}"
        if batch_size is not None and batch_size > 1:
            more = f"data.batch_size {batch_size // 2} with {more}"
        found.append(Advice(more, now.activations // 2, "the same gradient, smaller products"))
    if memory.activation_checkpointing != "block":
        narrow = "bf16" in _precision(stage)
        then = sum(
            activation_bytes(network.config, rows, tokens, recompute="block", narrow=narrow)
            for network in _trained_networks(stage)
        )
        gain = now.activations - then
        found.append(Advice("memory.activation_checkpointing block", gain, "each block's products once more"))
    if stage.optimizer_config.state_bits == 32:
        moved = [parameter for parameter in stage.trained() if parameter.requires_grad]
        gain = now.optimizer - optimizer_bytes(moved, 8)
        found.append(Advice("optimizer.state_bits 8", gain, "rounded running means"))
    if stage.lora is None and stage.parent is not None and "lora" in inspect.signature(type(stage)).parameters:
        gain = now.gradients + now.optimizer
        found.append(Advice("lora.rank 16", gain, "a low-rank update is all that is learned"))
    if memory.frozen_dtype == "float32":
        found.append(Advice("memory.frozen_dtype bfloat16", now.frozen // 2, "rounded reference and rewards"))
    if _device(stage).type == "cuda" and _precision(stage) == "32-true":
        found.append(Advice("trainer.precision bf16-mixed", now.activations // 3, "products of 8 bits"))
    return sorted((one for one in found if one.gain > 0), key=lambda one: -one.gain)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    words = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in words or "out of memory" in words.lower())
    )


def explain_out_of_memory(stage: Stage, *, batch_size: int | None) -> str:
    """The sizes at fault and the three settings that help most.

    Args:
        stage: that ran out of memory; its networks may be missing if that was while building them.
        batch_size: the data's, None where it does not decide the rows of a micro-batch.
    """
    if not hasattr(stage, "network"):
        return "out of memory while the networks were built: no batch was read yet"
    rows, tokens = stage.batch_shape or (0, 0)
    held = footprint(stage, rows, tokens)
    where = f"in a batch of {rows} rows x {tokens} tokens" if rows else "before the first batch"
    parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in vars(held).items())
    lines = [f"out of memory on {_device(stage)}, {where}; estimated {_gigabytes(held.total)}: {parts}."]
    if best := advice(stage, rows, tokens, batch_size=batch_size)[:3]:
        lines.append("What helps most, with what it costs:")
        lines += [f"  {one.setting}: about {_gigabytes(one.gain)} less; {one.price}" for one in best]
    return "\n".join(lines)


def _trained_modules(stage: Stage) -> list[nn.Module]:
    found: list[Any] = [stage.network, getattr(stage, "value", None)]
    return [module for module in found if module is not None]


def _trained_networks(stage: Stage) -> list[GPT | ScalarGPT]:
    return [network for network in _trained_modules(stage) if isinstance(network, GPT | ScalarGPT)]


def _device(stage: Stage) -> torch.device:
    # The stage itself is back on the CPU once a run has failed.
    device: torch.device = stage.trainer.strategy.root_device
    return device


def _precision(stage: Stage) -> str:
    return str(stage.trainer.precision)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    """On this rank, where weights are sharded."""
    return sum(local(parameter).nbytes for parameter in parameters)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
