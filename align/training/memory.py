"""Settings that trade time or precision for memory, and which precisions a stage trains in.

How a network trains: what its backward pass recomputes, and which of its forwards are compiled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn

from align.model.gpt import GPT, ScalarGPT
from align.model.layers import Block, Recompute

_INSTEAD = "train in bf16-mixed, or in 32-true where the device has no bfloat16"

_REFUSED = {
    "16-mixed": "losses make their gradients in the forward pass, before the scaler, and float16 rounds those below "
    f"3e-8 to 0: {_INSTEAD}",
    "16-true": f"float16 rounds gradients below 3e-8 to 0 and nothing scales them: {_INSTEAD}",
}

_LOSES_UPDATES = (
    "bfloat16 weights have 8 bits, so an update below 1/512 of a weight is lost: at the learning rate 1e-6 1.4% of the "
    "weights moved in 40 steps. Train in bf16-mixed, or set memory.low_precision_weights to true"
)


@dataclass(frozen=True)
class MemoryConfig:
    """What a stage gives up for memory; docs/precision_memory.md has what each setting saves and costs.

    Raises:
        ValueError: a setting is impossible.
    """

    activation_checkpointing: Recompute = "none"
    """What the backward pass computes again instead of keeping it: nothing; the feed-forwards (selective); whole blocks
    (block). On a CPU gradients are bitwise identical: the same operations run again"""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights of the networks that are never trained, reference and rewards: bfloat16 takes half the memory"""
    compile_widths: tuple[int, ...] = ()
    """Under compile: row widths that batches are padded to, tokens, the context being one more; empty: 64, 128, 256 and
    so on"""
    low_precision_weights: bool = False
    """Train in bf16-true although it loses small updates"""

    def __post_init__(self) -> None:
        """Reject impossible settings."""
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
    """Refuse a precision in which trained weights or gradients lose what they should learn.

    Args:
        precision: the Trainer's.
        memory: ``low_precision_weights`` allows bf16-true.

    Raises:
        ValueError: the precision is refused; the line says why and what would be right.
    """
    if precision in _REFUSED:
        raise ValueError(f"trainer.precision is {precision}: {_REFUSED[precision]}")
    if precision == "bf16-true" and not memory.low_precision_weights:
        raise ValueError(f"trainer.precision is bf16-true: {_LOSES_UPDATES}")


def check_sharded_memory(memory: MemoryConfig, *, state_bits: int, compile: bool, devices: tuple[int, ...]) -> None:
    """Refuse what does not work over several devices that share weights.

    Args:
        memory: of the stage.
        state_bits: of the optimizer.
        compile: whether blocks are compiled.
        devices: data-parallel and tensor-parallel, that share one copy of the weights.

    Raises:
        ValueError: the line says what to change.
    """
    if state_bits == 8 and max(devices) > 1:
        raise ValueError(
            "optimizer.state_bits is 8 and trainer.strategy shards weights, whose blocks of 256 a checkpoint could not "
            "deal out again: set it to 32, of which sharding leaves each device its share"
        )
    if compile and memory.activation_checkpointing != "none" and devices[-1] > 1:
        raise ValueError(
            f"compile is on and memory.activation_checkpointing {memory.activation_checkpointing}, which torch can't "
            "compile for tensor parallelism: turn one of them off, or shard over data only"
        )


BACKEND = "inductor"
"""Of torch.compile; tests take one that needs no C compiler"""

_SMALLEST_WIDTH = 64

Module = TypeVar("Module", bound=nn.Module)


def without_dropout(module: Module) -> Module:
    """The module with every dropout at 0, adapters' too: log-probs of training are those of sampling."""
    for part in module.modules():
        if isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0  # type: ignore[assignment]
        elif isinstance(part, nn.Dropout):
            part.p = 0.0
    return module


def blocks_of(network: GPT | ScalarGPT) -> list[Block]:
    """The blocks of a network, the lowest first."""
    return list(cast(Sequence[Block], network.model.layers))


def recompute_activations(network: GPT | ScalarGPT, what: Recompute) -> None:
    """Let the network's blocks make activations again in the backward pass instead of keeping them.

    Args:
        network: any forward of it with gradients is concerned; generation and frozen networks have none.
        what: see ``Block.recompute``.
    """
    for block in blocks_of(network):
        block.recompute = what
        adapters = (module for module in block.modules() if isinstance(module, nn.Dropout))
        block.draws = block.dropout > 0 or any(dropout.p > 0 for dropout in adapters)


def default_widths(context: int) -> tuple[int, ...]:
    """Row widths to compile for: 64, 128, 256 and so on below the context, and the context, tokens."""
    widths = [_SMALLEST_WIDTH]
    while widths[-1] < context:
        widths.append(2 * widths[-1])
    return (*(width for width in widths if width < context), context)


def compile_blocks(network: GPT | ScalarGPT, widths: Sequence[int] = ()) -> None:
    """Compile the network's blocks for plain forwards with gradients, whose rows are padded to one of a few widths.

    Blocks, not the network: all blocks share one graph per width, so that compiling takes as long for 48 as for 2.
    Forwards without gradients, with a cache or of ``SharedRows`` stay as they are: their shapes are many.

    Args:
        network: keeps the names of its parameters.
        widths: tokens of a row; none: ``default_widths``. The context is always among them.

    Raises:
        ValueError: a width is not between 1 and the context.
    """
    context = network.config.context
    if not all(1 <= width <= context for width in widths):
        raise ValueError(f"widths to compile for are {list(widths)}: each must be between 1 and the context, {context}")
    chosen = tuple(sorted({*widths, context})) if widths else default_widths(context)
    # Blocks of other networks are seen as the same code: every width of a policy and of its value model counts.
    dynamo: Any = import_module("torch._dynamo.config")
    dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * len(chosen))
    for block in blocks_of(network):
        block.compiled = torch.compile(block.compute, dynamic=False, backend=BACKEND)
    network.model.widths = chosen
