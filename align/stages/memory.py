"""Settings that trade time or precision for memory, and which precisions a stage trains in."""

from dataclasses import dataclass
from typing import Literal

from align.model.block import Recompute

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
    (block). Gradients are the same to the bit"""
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
