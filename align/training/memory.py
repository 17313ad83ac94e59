"""Settings that trade time or precision for memory: precision, activation checkpointing, compilation."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn

from align.model.gpt import GPT, ScalarGPT
from align.model.layers import Block, Recompute

_ALTERNATIVE = "train in bf16-mixed, or in 32-true where the device has no bfloat16"

_REFUSED = {
    "16-mixed": "losses compute their gradients in the forward pass, before the gradient scaler, and float16 rounds "
    f"those below 3e-8 to 0: {_ALTERNATIVE}",
    "16-true": f"float16 rounds gradients below 3e-8 to 0, without a gradient scaler: {_ALTERNATIVE}",
}

_LOSES_UPDATES = (
    "bfloat16 weights have 8 bits, so an update below 1/512 of a weight is lost: at the learning rate 1e-6 1.4% of the "
    "weights moved in 40 steps. Train in bf16-mixed, or set memory.low_precision_weights to true"
)


@dataclass(frozen=True)
class MemoryConfig:
    """Memory settings of a stage; docs/precision_memory.md has what each saves and costs.

    Raises:
        ValueError: a setting is invalid.
    """

    activation_checkpointing: Recompute = "none"
    """What the backward pass recomputes instead of storing: nothing (none), feed-forward layers (selective) or whole
    blocks (block). On a CPU gradients are bitwise identical, because the same operations run again"""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights of networks that are never trained (reference, rewards): bfloat16 takes half the memory"""
    compile_widths: tuple[int, ...] = ()
    """With compile: row widths that batches are padded to, tokens, beside the context; empty: 64, 128, 256 and so on"""
    low_precision_weights: bool = False
    """Allow training in bf16-true, which loses small updates"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if self.activation_checkpointing not in ("none", "selective", "block"):
            raise ValueError(
                f"memory.activation_checkpointing is {self.activation_checkpointing!r}: it must be none, selective or "
                "block"
            )
        if self.frozen_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"memory.frozen_dtype is {self.frozen_dtype!r}: it must be float32 or bfloat16")
        if not all(width >= 1 for width in self.compile_widths):
            raise ValueError(f"memory.compile_widths are {list(self.compile_widths)}: each must be at least 1")


def check_precision(precision: str, memory: MemoryConfig) -> None:
    """Refuse a precision that loses weight updates or gradients.

    Args:
        precision: the Trainer's.
        memory: ``low_precision_weights`` allows bf16-true.

    Raises:
        ValueError: the precision is refused; the message says why and what to use.
    """
    if precision in _REFUSED:
        raise ValueError(f"trainer.precision is {precision}: {_REFUSED[precision]}")
    if precision == "bf16-true" and not memory.low_precision_weights:
        raise ValueError(f"trainer.precision is bf16-true: {_LOSES_UPDATES}")


def check_sharded_memory(memory: MemoryConfig, *, state_bits: int, compile: bool, devices: tuple[int, ...]) -> None:
    """Refuse settings that don't work with sharded weights.

    Args:
        memory: of the stage.
        state_bits: of the optimizer.
        compile: whether blocks are compiled.
        devices: data-parallel and tensor-parallel sizes of the mesh that holds one copy of the weights.

    Raises:
        ValueError: the message says what to change.
    """
    if state_bits == 8 and max(devices) > 1:
        raise ValueError(
            "optimizer.state_bits is 8 and trainer.strategy shards weights, but a checkpoint can't reshard the 8-bit "
            "state's blocks of 256: set it to 32, which is sharded too"
        )
    if compile and memory.activation_checkpointing != "none" and devices[-1] > 1:
        raise ValueError(
            f"compile is true and memory.activation_checkpointing is {memory.activation_checkpointing}, which torch "
            "can't compile with tensor parallelism: turn one of them off, or use data parallelism alone"
        )


BACKEND = "inductor"
"""Of torch.compile; tests set one that needs no C compiler"""

_SMALLEST_WIDTH = 64

Module = TypeVar("Module", bound=nn.Module)


def without_dropout(module: Module) -> Module:
    """The module with all dropout set to 0, also in adapters, so that training and sampling log-probs agree."""
    for part in module.modules():
        if isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0  # type: ignore[assignment]
        elif isinstance(part, nn.Dropout):
            part.p = 0.0
    return module


def blocks_of(network: GPT | ScalarGPT) -> list[Block]:
    """The blocks of a network, from input to output."""
    return list(cast(Sequence[Block], network.model.layers))


def recompute_activations(network: GPT | ScalarGPT, what: Recompute) -> None:
    """Have the network's blocks recompute activations in the backward pass instead of storing them.

    Args:
        network: affected in every forward pass with gradients, so not in generation.
        what: see ``Block.recompute``.
    """
    for block in blocks_of(network):
        block.recompute = what
        adapters = (module for module in block.modules() if isinstance(module, nn.Dropout))
        block.draws = block.dropout > 0 or any(dropout.p > 0 for dropout in adapters)


def default_widths(context: int) -> tuple[int, ...]:
    """Row widths to compile for, tokens: 64, 128, 256 and so on below the context, and the context."""
    widths = [_SMALLEST_WIDTH]
    while widths[-1] < context:
        widths.append(2 * widths[-1])
    return (*(width for width in widths if width < context), context)


def compile_blocks(network: GPT | ScalarGPT, widths: Sequence[int] = ()) -> None:
    """Compile the network's blocks for forward passes with gradients, whose rows are padded to one of a few widths.

    All blocks share one graph per width, so compiling takes as long for 48 as for 2. Forward passes without gradients,
    with a KV cache or of ``SharedRows`` are not compiled: they have too many shapes.

    Args:
        network: keeps its parameter names.
        widths: row widths, tokens; empty: ``default_widths``. The context is always added.

    Raises:
        ValueError: a width is not between 1 and the context.
    """
    context = network.config.context
    if not all(1 <= width <= context for width in widths):
        raise ValueError(f"compile widths are {list(widths)}: each must be between 1 and the context, {context}")
    chosen = tuple(sorted({*widths, context})) if widths else default_widths(context)
    # The limit is per code object: the widths of a policy and of its value model add up.
    dynamo: Any = import_module("torch._dynamo.config")
    dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * len(chosen))
    for block in blocks_of(network):
        block.compiled = torch.compile(block.compute, dynamic=False, backend=BACKEND)
    network.model.widths = chosen
