"""How a network trains: what its backward pass recomputes, and which of its forwards are compiled."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, TypeVar, cast

import torch
from torch import nn

from align.model.block import Block, Recompute
from align.model.gpt import GPT
from align.model.scalar import ScalarGPT

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
