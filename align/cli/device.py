"""``--device``: the device of the networks of a verb that samples or scores."""

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.cli.errors import UsageError

if TYPE_CHECKING:
    import torch

# What torch raises for a device whose name it does not know, that it was built without, or that is absent.
_ABSENT = (RuntimeError, AssertionError, ImportError, AttributeError, ValueError)
_SHOWN = 100  # characters of torch's reason


@dataclass(frozen=True)
class DeviceSettings:
    """The device of a verb's networks."""

    device: str = "auto"
    """Device of the model and of reward models that score: cpu, cuda, cuda:1 or any other name that torch accepts; auto
    is cuda:0 where torch sees a GPU, else cpu. Weights are float32 on every device"""


def network_device(name: str) -> "torch.device":
    """The device that a value of ``--device`` means.

    Args:
        name: as given on the command line.

    Returns:
        torch.device: an available device, with its index where its type has indices.

    Raises:
        UsageError: torch cannot use it; the message gives the reason and the available devices.
    """
    import torch

    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        # To the device and back: "meta" accepts tensors and cannot return their values.
        there = torch.zeros(1, device=name)
        there.cpu()
    except torch.OutOfMemoryError:
        raise  # the device exists and its memory is full
    except _ABSENT as error:
        right = ", ".join(["auto", *_accelerators()])
        why = textwrap.shorten(str(error), _SHOWN, placeholder=" ...")
        raise UsageError(f"--device is {name!r}, which torch cannot use here ({why}); give {right} or cpu") from error
    return there.device


def _accelerators() -> list[str]:
    """The accelerators that torch sees."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    return [] if kind is None else [f"{kind.type}:{number}" for number in range(torch.accelerator.device_count())]
