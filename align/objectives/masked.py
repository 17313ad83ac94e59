"""Sums, means and whitening of what a mask lets through.

What the mask hides is never read: a NaN there reaches neither the value nor the gradient.
"""

import torch


def masked_sum(values: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Sum of the values where the mask is True.

    Args:
        values: any shape.
        mask: bool, the shape of ``values``, True = counts.
        dim: axis to sum over; all of them by default.

    Returns:
        ``[]``, or the shape of ``values`` without ``dim``; 0 for a slice where nothing counts.

    Raises:
        ValueError: the shapes differ, or nothing counts at all.
    """
    _check(values, mask, mask.any())
    kept = values.masked_fill(~mask, 0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Mean of the values where the mask is True.

    Args:
        values: any shape.
        mask: bool, the shape of ``values``, True = counts.
        dim: axis to average over; all of them by default.

    Returns:
        ``[]``, or the shape of ``values`` without ``dim``.

    Raises:
        ValueError: the shapes differ, or some mean would be of no values.
    """
    count = mask.sum() if dim is None else mask.sum(dim)
    _check(values, mask, (count > 0).all())
    return masked_sum(values, mask, dim) / count


def masked_var(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Unbiased variance (divided by n - 1) of the values where the mask is True, as in TRL; 0 of a single value.

    Args:
        values: any shape.
        mask: bool, the shape of ``values``, True = counts.

    Returns:
        ``[]``.

    Raises:
        ValueError: the shapes differ, or nothing counts.
    """
    mean = masked_mean(values, mask)
    # Filled before squaring: NaN squared would come back through the gradient.
    return masked_sum((values - mean).masked_fill(~mask, 0).square(), mask) / (mask.sum() - 1).clamp(min=1)


def masked_whiten(
    values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True, eps: float = 1e-8
) -> torch.Tensor:
    """Scale the values where the mask is True to (unbiased) variance 1, and shift their mean to 0.

    Args:
        values: any shape.
        mask: bool, the shape of ``values``, True = counts.
        shift_mean: remove the mean; False scales around it and leaves it where it was.
        eps: added to the variance, so that equal values give 0 and not a division by 0.

    Returns:
        The shape of ``values``; 0 where the mask is False.

    Raises:
        ValueError: the shapes differ, or nothing counts.
    """
    mean = masked_mean(values, mask)
    whitened = (values - mean).masked_fill(~mask, 0) * torch.rsqrt(masked_var(values, mask) + eps)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.masked_fill(~mask, 0)


def _check(values: torch.Tensor, mask: torch.Tensor, filled: torch.Tensor) -> None:
    if values.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {mask.dtype} {tuple(mask.shape)}; values {tuple(values.shape)} need a bool mask of their shape"
        )
    if not filled:
        raise ValueError(f"empty mask: nothing counts among values {tuple(values.shape)}")
