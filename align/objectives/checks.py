"""What losses of records check alike: their settings, and the shapes that they return."""

from collections.abc import Mapping

import torch


def check_setting(loss: object, name: str, holds: bool, right: str) -> None:
    """Refuse a setting of a loss.

    Args:
        loss: that has it.
        name: of the setting.
        holds: whether its value is possible.
        right: what it must be.

    Raises:
        ValueError: it does not hold.
    """
    if not holds:
        raise ValueError(f"{type(loss).__name__}: {name} is {getattr(loss, name)}; it must be {right}")


def check_shapes(loss: str, losses: Mapping[str, torch.Tensor], shape: torch.Size) -> None:
    """Refuse tensors that do not have one number per record; the stage checks that they are finite.

    Args:
        loss: name of the loss.
        losses: what it returned, by field.
        shape: ``[B]``.

    Raises:
        ValueError: a tensor is not ``[B]``.
    """
    for field, tensor in losses.items():
        if tensor.shape != shape:
            raise ValueError(
                f"loss {loss} returned {field} {tuple(tensor.shape)}: it must be {tuple(shape)}, one number for each "
                "pair or response"
            )
