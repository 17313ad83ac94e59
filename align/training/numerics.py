"""What decides the last bit of a sum, and a line about it where a run goes on under another one."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch


def arithmetic(trainer: pl.Trainer) -> dict[str, str | int]:
    """How a run computes: everything that has the same sum end in other bits where it is another.

    Args:
        trainer: whose run.

    Returns:
        dict: torch's version, strategy, ranks and precision; threads and the widest instructions of a CPU, the name of
        a GPU.
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
    """What of an arithmetic is another one now.

    Args:
        then: of the run that made a checkpoint.
        now: of the one that goes on from it.

    Returns:
        str: such as ``threads 2, now 1``; None where they are the same.
    """
    names = [name for name in now if then.get(name) != now[name]]
    return "; ".join(f"{name} {then.get(name, 'not said')}, now {now[name]}" for name in names) or None
