"""Optimizers and learning-rate schedules: AdamW with weight decay on matrices only, also with 8-bit state, and Muon."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from align.training.muon import MUON, AdamWAndMuon
from align.training.sharding import by_mesh


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019), or Muon for the matrices of the blocks.

    Raises:
        ValueError: a setting is invalid.
    """

    lr: float | None = None
    """Peak learning rate, per optimizer step; None: by stage, size of the network and adapters"""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the running means of the gradient and its square"""
    eps: float = 1e-8
    """Added to the root of the mean squared gradient"""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; vectors (norms, biases) never decay"""
    matrices: Literal["adamw", "muon"] = "adamw"
    """What updates the matrices of the blocks; AdamW keeps embeddings, output matrix, norms and biases. Muon takes the
    same learning rate and has half the state"""
    momentum: float = 0.95
    """Muon only: decay rate of the running mean of the gradient"""
    state_bits: Literal[32, 8] = 32
    """Bits per value of the running means: 8 takes a quarter of the memory, in blocks of 256 with a scale each
    (Dettmers et al. 2022, arXiv:2110.02861), and needs torchao"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"optimizer.lr is {self.lr}: it must be above 0, or null for the default of the stage")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay is {self.weight_decay}: it must be at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas are {self.betas}: each must be at least 0 and below 1")
        if self.matrices not in ("adamw", "muon"):
            raise ValueError(f"optimizer.matrices is {self.matrices}: it must be adamw or muon")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum is {self.momentum}: it must be at least 0 and below 1")
        if self.matrices == "muon" and self.state_bits == 8:
            raise ValueError("optimizer.matrices is muon and optimizer.state_bits is 8: Muon's state has 32 bits")
        if self.state_bits not in (8, 32):
            raise ValueError(f"optimizer.state_bits is {self.state_bits}: it must be 8 or 32")

    @property
    def peak(self) -> float:
        """The learning rate, once it is known.

        Raises:
            ValueError: it is None; a stage replaces that when it has built its network.
        """
        if self.lr is None:
            raise ValueError("optimizer.lr is None: set it, or build the optimizer by a stage, which has a default")
        return self.lr


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over optimizer steps, as a factor of the peak.

    Raises:
        ValueError: a setting is invalid.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """After the warm-up; wsd (warm-up-stable-decay): constant, then linear decay over the last decay_share"""
    warmup_steps: int | float = 0.1
    """Linear warm-up from 0 to the peak: optimizer steps, or a share of the run if below 1"""
    final_factor: float = 0.1
    """Factor of the peak at the last step (unused by constant)"""
    decay_share: float = 0.2
    """wsd only: share of all steps spent decaying"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps is {self.warmup_steps}: it must be at least 0")
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(
                f"schedule.warmup_steps is {self.warmup_steps}: it must be a whole number of steps, or a share below 1"
            )
        if not 0 <= self.final_factor <= 1:
            raise ValueError(f"schedule.final_factor is {self.final_factor}: it must lie in [0, 1]")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"schedule.decay_share is {self.decay_share}: it must lie in (0, 1]")

    def warmup(self, total: int) -> int:
        """Optimizer steps of warm-up in a run of ``total``; a share is rounded down, so it is always shorter."""
        return int(self.warmup_steps * total) if self.warmup_steps < 1 else int(self.warmup_steps)

    def factor(self, step: int, total: int) -> float:
        """Factor of the peak learning rate at an optimizer step.

        Args:
            step: optimizer steps already done, from 0.
            total: optimizer steps of the run.

        Returns:
            float: in (0, 1] during warm-up, so that the first step already learns; in [final_factor, 1] afterwards.
        """
        start = self.warmup(total)
        if step < start:
            return (step + 1) / (start + 1)
        if self.kind == "constant":
            return 1.0
        if self.kind == "wsd":
            start = max(start, round(total * (1 - self.decay_share)))
        progress = min(1.0, max(0, step - start) / max(1, total - 1 - start))
        decay = 0.5 * (1 + math.cos(math.pi * progress)) if self.kind == "cosine" else 1 - progress
        return self.final_factor + (1 - self.final_factor) * decay


class AdamW(torch.optim.AdamW):
    """torch's AdamW, for parameter groups that mix sharded and unsharded tensors.

    Its kernel updates tensors of one device mesh together. Separate groups per mesh would work too, but then
    checkpoints of different strategies would have different groups.
    """

    def step(self, closure: Any = None) -> Any:
        """Update every group, mesh by mesh."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [{**group, "params": part} for group in groups for part in by_mesh(group["params"])]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, *, blocks: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """AdamW with decay only on matrices (two or more axes); with Muon for the matrices of the blocks if so set.

    Args:
        parameters: of the network; frozen ones are skipped.
        config: its settings.
        blocks: those of the parameters that Muon may update (``block_matrices``).

    Returns:
        torch.optim.Optimizer: torch's, fused if every parameter's device has the fused kernel; torchao's for 8-bit
        state.

    Raises:
        ModuleNotFoundError: 8-bit state needs torchao, which is not installed.
    """
    trained = [p for p in parameters if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.state_bits == 8:
        return eight_bit_adamw(groups, config)
    fused = all(p.device.type in {"cpu", "cuda"} for p in trained)
    adamw: dict[str, Any] = {"lr": config.peak, "betas": config.betas, "eps": config.eps, "fused": fused}
    if config.matrices == "muon":
        chosen = {id(p) for p in blocks}
        ours = [p for p in groups[0]["params"] if id(p) in chosen]
        groups[0]["params"] = [p for p in groups[0]["params"] if id(p) not in chosen]
        groups.append({"params": ours, "weight_decay": config.weight_decay, MUON: True})
        filled = [group for group in groups if group["params"]]
        optimizer: torch.optim.Optimizer = AdamWAndMuon(filled, AdamW, momentum=config.momentum, **adamw)
    else:
        optimizer = AdamW(groups, **adamw)
    # A fused step can unscale fp16 gradients itself, so Lightning refuses to clip before it, even in bf16.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def build_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, total_steps: int) -> LambdaLR:
    """The schedule as a torch scheduler, to be stepped once per optimizer step.

    Args:
        optimizer: whose learning rates are scaled.
        config: its settings.
        total_steps: optimizer steps of the run.

    Returns:
        LambdaLR: multiplies each group's learning rate by ``config.factor(step, total_steps)``.

    A warm-up that is not shorter than the run is a warning, so that a recipe can be tried for a few steps.
    """
    if config.warmup(total_steps) and config.warmup(total_steps) >= total_steps:
        rank_zero_warn(
            f"schedule.warmup_steps is {config.warmup_steps}, but the run has {total_steps} optimizer steps: the peak "
            "learning rate is never reached; set it below, or to a share such as 0.1"
        )
    return LambdaLR(optimizer, lambda step: config.factor(step, total_steps))


def eight_bit_adamw(groups: list[dict[str, Any]], config: "OptimizerConfig") -> torch.optim.Optimizer:
    """AdamW from torchao, with both running means in blocks of 256 8-bit codes and one float32 scale.

    Tensors of fewer than 4096 elements, or not divisible by 256, keep 32-bit state. A step computes torch's AdamW on
    the dequantized means, in another order of operations. Its ``state_dict`` has plain tensors of codes and scales, so
    reading a checkpoint does not need torchao.

    Args:
        groups: parameter groups.
        config: learning rate, betas, eps.

    Raises:
        ModuleNotFoundError: torchao is not installed.
    """
    torchao = _torchao()
    quantized = import_module("torchao.optim.subclass_8bit").OptimState8bit

    class AdamW(torchao.AdamW8bit):  # type: ignore[name-defined]
        def step(self, closure: Any = None) -> Any:
            # torchao compiles a kernel per matrix shape: on a CPU a minute of C++ for no gain.
            on_cpu = all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
            with torch.compiler.set_stance("force_eager" if on_cpu else "default"):
                return super().step(closure)

        def state_dict(self) -> dict[str, Any]:
            stored = super().state_dict()
            states = stored["state"].items()
            stored["state"] = {number: {name: plain(value) for name, value in of.items()} for number, of in states}
            return stored

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            states = state_dict["state"].items()
            found = {number: {name: packed(value) for name, value in of.items()} for number, of in states}
            super().load_state_dict({**state_dict, "state": found})

    def plain(value: Any) -> Any:
        if not isinstance(value, quantized):
            return value
        return {"codes": value.codes, "scale": value.scale, "signed": value.signed}

    def packed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        like = quantized.zeros(value["codes"].shape, value["signed"])
        return quantized(value["codes"], value["scale"], like.qmap, value["signed"])

    optimizer: torch.optim.Optimizer = AdamW(groups, lr=config.peak, betas=config.betas, eps=config.eps)
    return optimizer


def _torchao() -> Any:
    # Every import of torchao warns about missing GPU kernels, and makes torch warn.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return import_module("torchao.optim")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'optimizer.state_bits is 8, which needs torchao; pip install "lightning-align[export]", or set it to 32'
        ) from error
