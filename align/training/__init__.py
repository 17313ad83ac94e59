"""Training infrastructure: optimizers, precision, sharding, memory, checkpoints, preemption.

Public names are imported on first use, because Lightning takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from align.training.checkpointing import Checkpoints
    from align.training.memory import MemoryConfig
    from align.training.optimization import OptimizerConfig, ScheduleConfig
    from align.training.qlora import FourBit
    from align.training.strategy import ModelParallel
    from align.training.weight_average import WeightAverage
else:

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name not in _HOMES:
            raise AttributeError(f"module 'align.training' has no attribute {name!r}")
        return getattr(import_module(f"align.training.{_HOMES[name]}"), name)
