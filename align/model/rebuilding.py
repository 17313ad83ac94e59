"""Activations that are cheaper to compute again than to store.

A matrix product whose weight is trained, or adapted, stores its input for the backward pass. Where that input is an
elementwise function of tensors that are stored anyway, ``rebuilding`` stores the function instead. The same operations
run again, so gradients are bitwise identical.

Legend: B rows, T tokens, F width inside the feed-forward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

_inside_checkpoint: ContextVar[bool] = ContextVar("inside_checkpoint", default=False)


@contextmanager
def rebuilding(tensor: torch.Tensor, compute: Callable[[], torch.Tensor]) -> Iterator[None]:
    """What the graph stores of ``tensor`` in the block is computed again in the backward pass.

    No effect without gradients, on sharded tensors, in ``checkpointed``, and while compiling: the compiler decides.

    Args:
        tensor: input of the block's operations.
        compute: its values, elementwise from tensors that the graph stores anyway.
    """
    off = torch.compiler.is_compiling() or not torch.is_grad_enabled() or _inside_checkpoint.get()
    if off or type(tensor) is not torch.Tensor:
        yield
        return
    memory, numel = tensor.data_ptr(), tensor.numel()

    def pack(stored: torch.Tensor) -> torch.Tensor | torch.Size:
        same = type(stored) is torch.Tensor and stored.numel() == numel and stored.data_ptr() == memory
        # Products see a matrix where the block sees a batch.
        return stored.shape if same and stored.is_contiguous() else stored

    def unpack(stored: torch.Tensor | torch.Size) -> torch.Tensor:
        if isinstance(stored, torch.Tensor):
            return stored
        with torch.no_grad():
            return compute().reshape(stored)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def checkpointed(part: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """``part`` without ``rebuilding``, for activation checkpointing, which stores nothing of it."""

    def run(x: torch.Tensor) -> torch.Tensor:
        token = _inside_checkpoint.set(True)
        try:
            return part(x)
        finally:
            _inside_checkpoint.reset(token)

    return run


def after_norm(norm: nn.Module, module: nn.Module, x: torch.Tensor, *args: Any) -> torch.Tensor:
    """``module(norm(x), *args)``, storing x but not the normalised x."""
    normalised = norm(x)
    with rebuilding(normalised, lambda: norm(x)):
        out: torch.Tensor = module(normalised, *args)
    return out


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up``, storing only its inputs, which have the same shape."""
    return F.silu(gate) * up if torch.compiler.is_compiling() else _SwiGLU.apply(gate, up)


class _SwiGLU(torch.autograd.Function):
    """The operations and their order are those of autograd, without storing ``silu(gate)``."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)
