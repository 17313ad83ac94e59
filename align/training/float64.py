"""Accumulating in float64, also on devices that have no float64 (Apple's MPS): there on the CPU."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torchmetrics import Metric


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64: on its device, or on the CPU where its device has no float64."""
    return (tensor if _has_float64(tensor.device.type) else tensor.cpu()).double()


class WideMetric(Metric):
    """A metric with float64 states, which stay on the CPU where the module's device has no float64.

    ``update`` moves what it adds to ``self.device``.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], exclude_state: Sequence[str] = "") -> "WideMetric":
        """Move the states, unless to a device that cannot hold them."""
        target = fn(torch.zeros(1, device=self.device)).device
        if _has_float64(target.type):
            super()._apply(fn, exclude_state)
        return self


@cache
def _has_float64(device_type: str) -> bool:
    try:
        torch.empty(0, dtype=torch.float64, device=device_type)
    except (TypeError, RuntimeError):  # MPS raises the former
        return False
    return True
