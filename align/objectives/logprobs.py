"""Log-probabilities of tokens straight from hidden states, never holding all the logits.

Legend: B rows, T tokens, D width, V vocabulary, N positions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK = 256
"""Positions whose logits exist at once: 256 x 4096 float32 is 4 MB, which stays in a CPU's cache."""

KEEP_BYTES = 32 * 2**20
"""Softmax kept from forward to backward; chunks beyond it are computed again in the backward pass.

The weight's gradient needs the softmax and the upstream gradient together, and the latter is not known before the
backward pass. Keeping saves one product of three; 32 MiB hold 2048 positions of a vocabulary of 4096 in float32.
"""


def token_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> torch.Tensor:
    """``log softmax(hidden @ weight.T / temperature)`` at the targets, without the ``[N, V]`` logits.

    Memory is ``chunk * V`` and at most ``KEEP_BYTES`` beside it. Autocast does not reach inside: products are taken in
    hidden's type, the softmax in at least float32. Differentiable once, in ``hidden`` and ``weight``.

    Args:
        hidden: ``[N, D]`` hidden states, in any floating type.
        weight: ``[V, D]`` output matrix.
        targets: ``[N]`` int64 ids.
        temperature: divides the logits, > 0: the sampler's, so that old, new and reference log-probs speak of one
            distribution.
        chunk: positions whose logits exist at once.

    Returns:
        ``[N]`` nats, at least float32.

    Raises:
        ValueError: the temperature is not above 0.
    """
    _check_temperature(temperature)
    return _TokenLogprobs.apply(hidden, weight, targets, temperature, chunk, False)[0]


def token_logprobs_and_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    entropy_grad: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``token_logprobs`` and the entropy of each position's distribution, in the same pass.

    Args:
        hidden: ``[N, D]`` hidden states.
        weight: ``[V, D]`` output matrix.
        targets: ``[N]`` int64 ids.
        temperature: divides the logits, > 0.
        chunk: positions whose logits exist at once.
        entropy_grad: let gradients flow through the entropy, for an entropy bonus; costs a second pass over every
            chunk's logits.

    Returns:
        tuple: ``logprobs [N]`` and ``entropy [N]``, nats; the entropy is detached unless ``entropy_grad``.

    Raises:
        ValueError: the temperature is not above 0.
    """
    _check_temperature(temperature)
    if not entropy_grad:
        return _TokenLogprobs.apply(hidden, weight, targets, temperature, chunk, True)
    parts = [
        checkpoint(_plain_chunk, h, weight, t, temperature, use_reentrant=False)
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def response_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Log-prob of each counted token given the tokens before it.

    This is where labels are shifted: the hidden state at t predicts the id at t + 1. Positions that do not count never
    reach the output matrix.

    Args:
        hidden: ``[B, T-1, D]`` final hidden states of ``ids[:, :-1]``.
        weight: ``[V, D]`` output matrix.
        ids: ``[B, T]`` int64.
        mask: ``[B, T]`` bool, True where a token counts; ``mask[:, 0]`` is not read.
        temperature: divides the logits, > 0.

    Returns:
        ``[B, T]`` nats, at least float32; 0 where the mask is False and in column 0.

    Raises:
        ValueError: the shapes do not belong together, or the temperature is not above 0.
    """
    if hidden.shape[:2] != (ids.shape[0], ids.shape[1] - 1):
        raise ValueError(
            f"hidden {tuple(hidden.shape)} must hold one position less than ids {tuple(ids.shape)}: "
            "run the network on ids[:, :-1]"
        )
    counted = mask[:, 1:]
    logprobs = token_logprobs(hidden[counted], weight, ids[:, 1:][counted], temperature=temperature)
    return F.pad(logprobs.new_zeros(counted.shape).masked_scatter(counted, logprobs), (1, 0))


def sequence_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Summed log-prob of each row's counted tokens: ``response_logprobs`` added up.

    Returns:
        ``[B]`` nats, at least float32; 0 for a row where nothing counts.
    """
    return response_logprobs(hidden, weight, ids, mask, temperature=temperature).sum(1)


class _TokenLogprobs(torch.autograd.Function):
    """d logprob_i / d logits_i = (onehot_i - softmax_i) / temperature, and the upstream gradient is one number a row.

    So hidden's gradient is ready up to that number in the forward pass, as in ``linear_cross_entropy``; the weight's
    needs the softmax again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        chunk: int,
        entropies: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        matrix = weight.to(hidden.dtype)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
        entropy = torch.empty_like(logprobs) if entropies else logprobs.new_empty(0)
        slope = torch.empty_like(hidden) if wants_hidden else None
        kept: list[torch.Tensor] = []
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            t = targets[rows, None]
            scores = _log_softmax(hidden[rows], matrix, temperature)
            logprobs[rows] = scores.gather(1, t)[:, 0]
            if not (entropies or wants_hidden or wants_weight):
                continue
            if entropies:
                torch.sum(scores * scores.exp(), -1, out=entropy[rows]).neg_()
            if not (wants_hidden or wants_weight):
                continue
            residual = _residual(scores, t).to(hidden.dtype)
            if slope is not None:
                torch.mm(residual, matrix, out=slope[rows])
            if wants_weight and len(kept) * chunk * residual[0].nbytes < KEEP_BYTES:
                kept.append(residual)
        ctx.save_for_backward(hidden, weight, targets, slope, *kept)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _grad_entropy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets, slope, *kept = ctx.saved_tensors
        # The residual is softmax - onehot: minus the derivative.
        upstream = (grad / -ctx.temperature)[:, None]
        grad_hidden = None if slope is None else (slope * upstream).to(hidden.dtype)
        if not ctx.needs_input_grad[1]:
            return grad_hidden, None, None, None, None, None
        grad_weight = torch.zeros_like(weight)
        matrix = weight.to(hidden.dtype)
        for i, start in enumerate(range(0, len(hidden), ctx.chunk)):
            rows = slice(start, start + ctx.chunk)
            if i < len(kept):
                residual = kept[i]
            else:
                scores = _log_softmax(hidden[rows], matrix, ctx.temperature)
                residual = _residual(scores, targets[rows, None]).to(hidden.dtype)
            _add_product(grad_weight, residual.T, (hidden[rows] * upstream[rows]).to(hidden.dtype))
        return grad_hidden, grad_weight, None, None, None, None


def _log_softmax(hidden: torch.Tensor, matrix: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probs ``[N, V]`` of a chunk, at least float32."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden, matrix).to(torch.promote_types(hidden.dtype, torch.float32))
    if temperature != 1.0:
        logits.div_(temperature)
    return torch.log_softmax(logits, -1)


def _residual(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Softmax minus onehot ``[N, V]``, written over the log-probs ``scores``."""
    softmax = scores.exp_()
    return softmax.scatter_add_(1, targets, softmax.new_full((), -1.0).expand_as(targets))


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``total += left @ right``, accumulated in total's own precision."""
    with torch.autocast(total.device.type, enabled=False):
        if total.dtype == right.dtype:
            total.addmm_(left, right)
        else:
            total.add_(left @ right)


def _plain_chunk(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of a chunk in plain differentiable operations."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden, weight.to(hidden.dtype)).to(torch.promote_types(hidden.dtype, torch.float32))
    scores = torch.log_softmax(logits / temperature, -1)
    return scores.gather(1, targets[:, None])[:, 0], -(scores.exp() * scores).sum(-1)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it divides the logits and must be above 0")
