"""Next-token cross-entropy straight from hidden states, never holding all the logits.

Legend: B rows, T tokens, D width, V vocabulary, N counted positions.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from align.objectives.chunks import chunk_size


class NextTokenLoss(NamedTuple):
    """Sums over the counted targets of a batch; divide by ``tokens`` for means.

    Attributes:
        loss: ``[]`` what to differentiate: nll plus the z-loss term, nats.
        nll: ``[]`` negative log-likelihood, nats, detached.
        tokens: ``[]`` int64, targets that counted.
    """

    loss: torch.Tensor
    nll: torch.Tensor
    tokens: torch.Tensor


def next_token_loss(
    hidden: torch.Tensor,
    output_weight: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    z_loss: float = 0.0,
) -> NextTokenLoss:
    """Summed cross-entropy of each counted token given the tokens before it.

    This is where labels are shifted: the hidden state at t predicts the id at t + 1.

    Args:
        hidden: ``[B, T-1, D]`` final hidden states of ``ids[:, :-1]``.
        output_weight: ``[V, D]`` the output matrix.
        ids: ``[B, T]`` int64.
        mask: ``[B, T]`` bool, True where a token counts as a target; ``mask[:, 0]`` is not read.
        z_loss: coefficient of the squared log-partition (PaLM, Chowdhery et al. 2022, section 5), 0 turns it off.

    Returns:
        NextTokenLoss: sums; all zero, with zero gradients, where nothing counts.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if hidden.shape[:2] != (ids.shape[0], ids.shape[1] - 1):
        raise ValueError(
            f"hidden {tuple(hidden.shape)} must hold one position less than ids {tuple(ids.shape)}: "
            "run the network on ids[:, :-1]"
        )
    counted = mask[:, 1:]
    # Positions whose logits nobody reads never reach the output matrix.
    loss, nll = linear_cross_entropy(hidden[counted], output_weight, ids[:, 1:][counted], z_loss=z_loss)
    return NextTokenLoss(loss, nll, counted.sum())


def row_nll(
    hidden: torch.Tensor, output_weight: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood of each row's counted tokens; not differentiable.

    Args:
        hidden: ``[B, T-1, D]`` final hidden states of ``ids[:, :-1]``.
        output_weight: ``[V, D]`` the output matrix.
        ids: ``[B, T]`` int64.
        mask: ``[B, T]`` bool, True where a token counts as a target.

    Returns:
        tuple: ``nll [B]`` nats, and ``tokens [B]`` int64 that counted.
    """
    rows = [next_token_loss(hidden[i, None], output_weight, ids[i, None], mask[i, None]) for i in range(len(ids))]
    return torch.stack([row.nll for row in rows]), torch.stack([row.tokens for row in rows])


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, z_loss: float = 0.0, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of ``hidden @ weight.T`` without holding the ``[N, V]`` logits.

    Logits, their softmax and both gradients are made chunk by chunk in the forward pass, so memory is
    ``chunk * V`` and the backward pass only scales what is there (the idea of Cut Cross-Entropy, Wijmans et al.
    2024, and of Liger's fused linear cross-entropy, Hsu et al. 2024).

    Args:
        hidden: ``[N, D]`` hidden states, in any floating type.
        weight: ``[V, D]`` output matrix.
        targets: ``[N]`` int64 ids.
        z_loss: coefficient of the squared log-partition added to the loss.
        chunk: positions whose logits exist at once; None: ``chunk_size``.

    Returns:
        tuple: ``loss []`` (nll + z-loss, differentiable) and ``nll []`` (detached), sums in nats, at least float32.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, z_loss, chunk or chunk_size(hidden))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, z_loss: float, chunk: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        matrix = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        penalty = torch.zeros_like(total)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], chunk):
                rows = slice(start, start + chunk)
                h, t = hidden[rows], targets[rows, None]
                logits = F.linear(h, matrix).to(total.dtype)
                log_partition = logits.logsumexp(-1, keepdim=True)
                total += (log_partition - logits.gather(1, t)).sum()
                penalty += log_partition.square().sum()
                if not (wants_hidden or wants_weight):
                    continue
                # d loss / d logits = softmax * (1 + 2 z log_partition) - onehot, written over the logits.
                grad = logits.sub_(log_partition).exp_()
                if z_loss:
                    grad.mul_(1 + 2 * z_loss * log_partition)
                grad.scatter_add_(1, t, grad.new_full((), -1.0).expand_as(t))
                grad = grad.to(hidden.dtype)
                if grad_hidden is not None:
                    torch.mm(grad, matrix, out=grad_hidden[rows])
                if grad_weight is not None:
                    _add_product(grad_weight, grad.T, h)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(total)
        return total + z_loss * penalty, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _grad_nll: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_loss.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad_loss.to(grad_weight.dtype),
            None,
            None,
            None,
        )


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``total += left @ right``, accumulated in total's own precision."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
