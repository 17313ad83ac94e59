"""``--device``: where the networks of a verb that samples or scores compute."""

import textwrap
from typing import TYPE_CHECKING

import jsonargparse

from align.cli.errors import UsageError

if TYPE_CHECKING:
    import torch

# What torch raises for a device that is no word it knows, was not built in, lacks its package, or is not there.
_ABSENT = (RuntimeError, AssertionError, ImportError, AttributeError, ValueError)
_SHOWN = 100  # characters of torch's reason


def add_device_argument(parser: jsonargparse.ArgumentParser) -> None:
    """Add ``--device`` to a verb's command line.

    Args:
        parser: of the verb.
    """
    parser.add_argument(
        "--device", default="auto",
        help="where the networks compute, those of reward models too: cpu, cuda, cuda:1 or any device that torch "
        "knows; auto: cuda:0 where torch sees a GPU, else cpu. Weights are float32 on each",
    )  # fmt: skip


def network_device(name: str) -> "torch.device":
    """The device that ``--device`` means.

    Args:
        name: what was given.

    Returns:
        torch.device: one that is there, with its number where its kind has numbers.

    Raises:
        UsageError: it cannot be used; the line says why, and which are there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        # There and back: "meta" takes numbers and gives none.
        there = torch.zeros(1, device=name)
        there.cpu()
    except torch.OutOfMemoryError:
        raise  # it is there, and full
    except _ABSENT as error:
        right = ", ".join(["auto", *_accelerators()])
        why = textwrap.shorten(str(error), _SHOWN, placeholder=" ...")
        raise UsageError(f"--device is {name!r}, which torch cannot use here ({why}); give {right} or cpu") from error
    return there.device


def _accelerators() -> list[str]:
    """The devices beside the CPU that torch sees."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    return [] if kind is None else [f"{kind.type}:{number}" for number in range(torch.accelerator.device_count())]
