"""How weights are trained: optimizers, precision, sharding, memory, checkpoints, preemption.

Public names are imported on first use: most of this room needs Lightning, which takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.training.checkpointing import Checkpoints
    from align.training.memory import MemoryConfig
    from align.training.optimization import OptimizerConfig, ScheduleConfig
    from align.training.qlora import FourBit
    from align.training.strategy import ModelParallel
    from align.training.weight_average import WeightAverage

_HOMES = {
    "Checkpoints": "checkpointing",
    "FourBit": "qlora",
    "MemoryConfig": "memory",
    "ModelParallel": "strategy",
    "OptimizerConfig": "optimization",
    "ScheduleConfig": "optimization",
    "WeightAverage": "weight_average",
}

__all__ = [
    "Checkpoints",
    "FourBit",
    "MemoryConfig",
    "ModelParallel",
    "OptimizerConfig",
    "ScheduleConfig",
    "WeightAverage",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'align.training' has no attribute {name!r}")
    return getattr(import_module(f"align.training.{_HOMES[name]}"), name)
