"""Statistics of the values that a mask counts, over one process or, with ``total``, over several.

Values where the mask is False are never read: a NaN there reaches neither the result nor the gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

Total = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over ranks"""


def one_process(tensor: torch.Tensor) -> torch.Tensor:
    """The ``Total`` of a single process: the tensor itself."""
    return tensor


class Moments(NamedTuple):
    """Moments of the counted values.

    Attributes:
        size: ``[]`` how many values count.
        mean: ``[]`` their mean.
        squares: ``[]`` sum of their squared distances from the mean.
    """

    size: torch.Tensor
    mean: torch.Tensor
    squares: torch.Tensor


def masked_moments(values: torch.Tensor, mask: torch.Tensor, *, total: Total = one_process) -> Moments:
    """Count, mean and squared deviations of the values where the mask is True.

    Args:
        values: any shape.
        mask: bool, the shape of ``values``, True = counts.
        total: sums over ranks.

    Raises:
        ValueError: the shapes differ, or no value counts on any rank.
    """
    if values.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {mask.dtype} {tuple(mask.shape)}; values {tuple(values.shape)} need a bool mask of their shape"
        )
    # Filled before squaring: NaN squared would come back through the gradient.
    kept = values.masked_fill(~mask, 0)
    size, added = total(torch.stack([mask.sum().to(values.dtype), kept.sum()]))
    if not size:
        raise ValueError(f"empty mask: nothing counts among values {tuple(values.shape)}")
    mean = added / size
    return Moments(size, mean, total((values - mean).masked_fill(~mask, 0).square().sum()))


def masked_whiten(
    values: torch.Tensor, mask: torch.Tensor, *, eps: float = 1e-8, total: Total = one_process
) -> torch.Tensor:
    """Shift and scale the values where the mask is True to mean 0 and (unbiased) variance 1.

    Args:
        values: any shape.
        mask: bool, the shape of ``values``, True = counts.
        eps: added to the variance.
        total: sums over ranks.

    Returns:
        The shape of ``values``; 0 where the mask is False.

    Raises:
        ValueError: the shapes differ, or no value counts on any rank.
    """
    size, mean, squares = masked_moments(values, mask, total=total)
    variance = squares / (size - 1).clamp(min=1)
    return (values - mean).masked_fill(~mask, 0) * torch.rsqrt(variance + eps)


def explained_variance(
    values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, *, total: Total = one_process
) -> torch.Tensor:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant, below 0 for a misleading one.

    Args:
        values: ``[B, N]``, float64: the result is a difference of nearly equal numbers.
        returns: ``[B, N]``, float64.
        mask: ``[B, N]`` bool, True = counts.
        total: sums over ranks.

    Returns:
        ``[]``; 0 where the returns vary only by float32's rounding, their own or that of the values they were made
        from: there is nothing to explain.

    Raises:
        ValueError: the shapes differ, or no value counts on any rank.
    """
    rest = masked_moments(returns - values, mask, total=total).squares
    whole = masked_moments(returns, mask, total=total).squares
    size = total((returns.square() + values.square()).masked_fill(~mask, 0).sum())
    return torch.where(whole > 1e-12 * size, 1 - rest / whole, torch.zeros_like(whole))
