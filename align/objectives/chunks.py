"""What the losses that never hold all logits share: which positions count, how many at a time, adding up a gradient.

Legend: B rows, T tokens, D width, N counted positions.
"""

import torch

_CPU = 256
_ACCELERATOR = 2048


def counted_positions(
    hidden: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pick the positions whose logits are needed, and shift the labels: the state at t predicts the id at t + 1.

    Args:
        hidden: ``[B, T-1, D]`` final hidden states of ``ids[:, :-1]``.
        ids: ``[B, T]`` int64.
        mask: ``[B, T]`` bool, True where a token counts; ``mask[:, 0]`` is ignored.

    Returns:
        tuple: hidden states ``[N, D]``, targets ``[N]`` int64, and ``[B, T-1]`` bool, True where they come from.

    Raises:
        ValueError: hidden does not have one position fewer than ids.
    """
    if hidden.shape[:2] != (ids.shape[0], ids.shape[1] - 1):
        raise ValueError(
            f"hidden is {tuple(hidden.shape)} and ids {tuple(ids.shape)}: hidden must have one position fewer; run the "
            "network on ids[:, :-1]"
        )
    counted = mask[:, 1:]
    return hidden[counted], ids[:, 1:][counted], counted


def chunk_size(device: torch.device) -> int:
    """Positions whose logits are computed at a time on a device.

    256 on a CPU: 256 x 4096 float32 logits are 4 MB, which fit into its cache. 2048 elsewhere, because every chunk
    reads and writes the whole gradient of the output matrix; 2048 x 50k float32 logits are 0.4 GB.
    """
    return _CPU if device.type == "cpu" else _ACCELERATOR


def chunk_buffer(hidden: torch.Tensor, weight: torch.Tensor, chunk: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory for one chunk of logits ``[min(chunk, N), V]``, which all chunks of a call share.

    New memory for every chunk, tens of megabytes with a real vocabulary, costs a fifth of the product on a CPU, where
    the system clears each page.
    """
    return torch.empty(min(chunk, len(hidden)), weight.shape[0], dtype=dtype, device=hidden.device)


def logits_into(buffer: torch.Tensor, hidden: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Logits ``[n, V]`` of a chunk's states ``[n, D]`` under ``matrix`` ``[V, D]``, in the first rows of ``buffer``.

    The product is in hidden's dtype.
    """
    logits = buffer[: len(hidden)]
    if buffer.dtype == hidden.dtype:
        return torch.mm(hidden, matrix.t(), out=logits)
    return logits.copy_(hidden @ matrix.t())


def cap_logits(logits: torch.Tensor, softcap: float | None) -> torch.Tensor | None:
    """Soft cap of logits, ``c tanh(logits / c)`` (Gemma 2, arXiv:2408.00118, section 2), in place.

    Args:
        logits: of any shape.
        softcap: c; None: none.

    Returns:
        The cap's derivative at each logit, ``1 - tanh(logits / c)^2``; None without a cap.
    """
    if softcap is None:
        return None
    slope = logits.div_(softcap).tanh_().square().neg_().add_(1.0)
    logits.mul_(softcap)
    return slope


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``total += left @ right``, accumulated in total's dtype."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
