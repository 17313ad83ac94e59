"""Next-token cross-entropy from hidden states, without holding all logits.

Legend: B rows, T tokens, D width, V vocabulary, N counted positions.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from align.objectives.chunks import add_product, cap_logits, chunk_buffer, chunk_size, counted_positions, logits_into


class NextTokenLoss(NamedTuple):
    """Sums over the counted targets of a batch; divide by ``tokens`` for means.

    Attributes:
        loss: ``[]`` nll plus the z-loss term, nats; to be differentiated.
        nll: ``[]`` negative log-likelihood, nats, detached.
        tokens: ``[]`` int64, number of counted targets.
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
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> NextTokenLoss:
    """Summed cross-entropy of the counted tokens, each given the tokens before it.

    Args:
        hidden: ``[B, T-1, D]`` final hidden states of ``ids[:, :-1]``.
        output_weight: ``[V, D]`` the output matrix.
        ids: ``[B, T]`` int64.
        mask: ``[B, T]`` bool, True where a token counts as a target; ``mask[:, 0]`` is ignored.
        softcap: of the logits, see ``cap_logits``; None: none.
        z_loss: coefficient of the squared log-partition (PaLM, Chowdhery et al. 2022, section 5); 0: none.

    Returns:
        NextTokenLoss: sums; all zero, with zero gradients, if nothing counts.

    Raises:
        ValueError: hidden does not have one position fewer than ids.
    """
    states, targets, counted = counted_positions(hidden, ids, mask)
    loss, nll = linear_cross_entropy(states, output_weight, targets, softcap=softcap, z_loss=z_loss)
    return NextTokenLoss(loss, nll, counted.sum())


def row_nll(
    hidden: torch.Tensor,
    output_weight: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each row, summed over its counted tokens; not differentiable.

    Args:
        hidden: ``[B, T-1, D]`` final hidden states of ``ids[:, :-1]``.
        output_weight: ``[V, D]`` the output matrix.
        ids: ``[B, T]`` int64.
        mask: ``[B, T]`` bool, True where a token counts as a target.
        softcap: of the logits, see ``cap_logits``; None: none.

    Returns:
        tuple: ``nll [B]`` nats, and ``tokens [B]`` int64, the number of counted tokens.
    """
    rows = [
        next_token_loss(hidden[i, None], output_weight, ids[i, None], mask[i, None], softcap=softcap)
        for i in range(len(ids))
    ]
    return torch.stack([row.nll for row in rows]), torch.stack([row.tokens for row in rows])


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of ``hidden @ weight.T`` without holding the ``[N, V]`` logits.

    The forward pass computes logits, softmax and both gradients chunk by chunk, so memory is ``chunk * V``, and the
    backward pass only scales the gradients (as in Cut Cross-Entropy, Wijmans et al. 2024, and Liger's fused linear
    cross-entropy, Hsu et al. 2024).

    Args:
        hidden: ``[N, D]`` hidden states of any floating dtype.
        weight: ``[V, D]`` output matrix.
        targets: ``[N]`` int64 ids.
        softcap: of the logits, see ``cap_logits``; None: none.
        z_loss: coefficient of the squared log-partition added to the loss.
        chunk: positions whose logits are computed at a time; None: ``chunk_size``.

    Returns:
        tuple: ``loss []`` (nll + z-loss, differentiable) and ``nll []`` (detached), sums in nats, at least float32.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, softcap, z_loss, chunk or chunk_size(hidden.device))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        softcap: float | None,
        z_loss: float,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        matrix = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        penalty = torch.zeros_like(total)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        buffer, scratch = (chunk_buffer(hidden, weight, chunk, total.dtype) for _ in range(2))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], chunk):
                rows = slice(start, start + chunk)
                h, t = hidden[rows], targets[rows, None]
                logits = logits_into(buffer, h, matrix)
                slope = cap_logits(logits, softcap)
                peak = logits.amax(-1, keepdim=True)
                exponentials = torch.sub(logits, peak, out=scratch[: len(h)]).exp_()
                log_partition = exponentials.sum(-1, keepdim=True).log_().add_(peak)
                total += (log_partition - logits.gather(1, t)).sum()
                penalty += log_partition.square().sum()
                if not (wants_hidden or wants_weight):
                    continue
                # d loss / d logits = softmax * (1 + 2 z log_partition) - onehot, in place of the logits.
                grad = logits.sub_(log_partition).exp_()
                if z_loss:
                    grad.mul_(1 + 2 * z_loss * log_partition)
                grad.scatter_add_(1, t, grad.new_full((), -1.0).expand_as(t))
                if slope is not None:
                    grad.mul_(slope)
                grad = grad.to(hidden.dtype)
                if grad_hidden is not None:
                    torch.mm(grad, matrix, out=grad_hidden[rows])
                if grad_weight is not None:
                    add_product(grad_weight, grad.T, h)
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
            None,
        )
