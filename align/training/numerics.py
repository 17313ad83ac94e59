"""What decides the last bits of a run's results, compared when it resumes."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch


def numerics(trainer: pl.Trainer) -> dict[str, str | int]:
    """Everything that changes how the same sums are rounded.

    Args:
        trainer: of the run.

    Returns:
        dict: torch's version, strategy, ranks and precision; on a CPU its threads and widest instruction set, on a GPU
        its name.
    """
    found: dict[str, str | int] = {
        "torch": str(torch.__version__),
        "strategy": type(trainer.strategy).__name__,
        "ranks": trainer.world_size,
        "precision": str(trainer.precision),
    }
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return found | {"device": torch.cuda.get_device_name(device)}
    return found | {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How the numerics of a resumed run differ from those of its checkpoint.

    Args:
        then: stored in the checkpoint.
        now: of the resumed run.

    Returns:
        str: such as ``threads 2 -> 1``; None if they are equal.
    """
    names = [name for name in now if then.get(name) != now[name]]
    return ", ".join(f"{name} {then.get(name, 'unknown')} -> {now[name]}" for name in names) or None
