"""Log-probs of tokens from hidden states, without holding all logits.

Legend: B rows, T tokens, D width, V vocabulary, N positions.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from align.objectives.chunks import add_product, cap_logits, chunk_buffer, chunk_size, counted_positions, logits_into

KEEP_BYTES = 64 * 2**20
"""Memory for softmax values kept from the forward to the backward pass on a CPU; the rest is recomputed.

The weight's gradient needs the softmax together with the upstream gradient, which is unknown until the backward pass.
Keeping the softmax saves one matrix product of four, a quarter of the time on a CPU core. 64 MiB hold 4096 positions of
a vocabulary of 4096 in float32.
"""
KEEP_BYTES_ACCELERATOR = 2**30
"""The same on other devices, where one chunk of 2048 positions and 50,000 tokens is 0.4 GB."""


class _Settings(NamedTuple):
    temperature: float
    softcap: float | None
    chunk: int
    entropy: bool
    grad: bool
    """Whether gradients are enabled at the call; inside an autograd function they never are."""


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """``log softmax(cap(hidden @ weight.T) / temperature)`` at the targets, without the ``[N, V]`` logits.

    Memory is ``chunk * V`` plus at most ``KEEP_BYTES`` (``KEEP_BYTES_ACCELERATOR`` on other devices than a CPU).
    Autocast has no effect: matrix products are in hidden's dtype, the softmax in at least float32. Differentiable once,
    with respect to ``hidden`` and ``weight``.

    Args:
        hidden: ``[N, D]`` hidden states of any floating dtype.
        weight: ``[V, D]`` output matrix.
        targets: ``[N]`` int64 ids.
        temperature: divides the logits, > 0; use the sampling temperature, so that old, new and reference log-probs
            refer to the distribution that was sampled from.
        softcap: of the logits, see ``cap_logits``; None: none.
        chunk: positions whose logits are computed at a time; None: ``chunk_size``.

    Returns:
        ``[N]`` nats, at least float32.

    Raises:
        ValueError: temperature is not above 0.
    """
    _check_temperature(temperature)
    chunk = chunk or chunk_size(hidden.device)
    settings = _Settings(temperature, softcap, chunk, entropy=False, grad=torch.is_grad_enabled())
    return _TokenLogprobs.apply(hidden, weight, targets, settings)[0]


def token_logprobs_and_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
    entropy_grad: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``token_logprobs`` and the entropy of each position's distribution, in one pass.

    Args:
        hidden: ``[N, D]`` hidden states.
        weight: ``[V, D]`` output matrix.
        targets: ``[N]`` int64 ids.
        temperature: divides the logits, > 0.
        softcap: of the logits, see ``cap_logits``; None: none.
        chunk: positions whose logits are computed at a time; None: ``chunk_size``.
        entropy_grad: make the entropy differentiable, for an entropy bonus; computes every chunk's logits twice.

    Returns:
        tuple: ``logprobs [N]`` and ``entropy [N]``, nats; the entropy is detached unless ``entropy_grad``.

    Raises:
        ValueError: temperature is not above 0.
    """
    _check_temperature(temperature)
    chunk = chunk or chunk_size(hidden.device)
    if not entropy_grad:
        settings = _Settings(temperature, softcap, chunk, entropy=True, grad=torch.is_grad_enabled())
        return _TokenLogprobs.apply(hidden, weight, targets, settings)
    parts = [
        checkpoint(_plain_chunk, h, weight, t, temperature, softcap, use_reentrant=False)
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def response_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """Log-prob of each counted token given the tokens before it. No other position reaches the output matrix.

    Args:
        hidden: ``[B, T-1, D]`` final hidden states of ``ids[:, :-1]``.
        weight: ``[V, D]`` output matrix.
        ids: ``[B, T]`` int64.
        mask: ``[B, T]`` bool, True where a token counts; ``mask[:, 0]`` is ignored.
        temperature: divides the logits, > 0.
        softcap: of the logits, see ``cap_logits``; None: none.

    Returns:
        ``[B, T]`` nats, at least float32; 0 where the mask is False and in column 0.

    Raises:
        ValueError: hidden does not have one position fewer than ids, or temperature is not above 0.
    """
    states, targets, counted = counted_positions(hidden, ids, mask)
    logprobs = token_logprobs(states, weight, targets, temperature=temperature, softcap=softcap)
    return F.pad(logprobs.new_zeros(counted.shape).masked_scatter(counted, logprobs), (1, 0))


def sequence_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """Log-prob of each row, summed over its counted tokens; arguments as in ``response_logprobs``.

    Returns:
        ``[B]`` nats, at least float32; 0 for a row in which nothing counts.
    """
    return response_logprobs(hidden, weight, ids, mask, temperature=temperature, softcap=softcap).sum(1)


class _TokenLogprobs(torch.autograd.Function):
    """d logprob_i / d logits_i = (onehot_i - softmax_i) / temperature, times one upstream gradient per row.

    The forward pass can thus compute hidden's gradient up to that factor, as in ``linear_cross_entropy``. The weight's
    gradient needs the softmax again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        settings: _Settings,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_hidden, wants_weight = (settings.grad and wanted for wanted in ctx.needs_input_grad[:2])
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
        entropy = torch.empty_like(logprobs) if settings.entropy else logprobs.new_empty(0)
        slope = torch.empty_like(hidden) if wants_hidden else None
        kept: list[torch.Tensor] = []
        keep = KEEP_BYTES if hidden.device.type == "cpu" else KEEP_BYTES_ACCELERATOR
        keep_rows = keep // (weight.shape[0] * hidden.element_size())
        buffer, scratch = (chunk_buffer(hidden, weight, settings.chunk, dtype) for _ in range(2))
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(hidden.dtype)
            for start in range(0, len(hidden), settings.chunk):
                rows = slice(start, start + settings.chunk)
                t = targets[rows, None]
                logits, cap_slope = _logits(hidden[rows], matrix, settings, buffer)
                peak = logits.amax(-1, keepdim=True)
                keeps = wants_weight and start + len(t) <= keep_rows
                softmax = torch.softmax(logits, -1, out=None if keeps else scratch[: len(t)])
                # The peak's probability gives the partition function without another pass of exponentials.
                log_partition = peak - softmax.amax(-1, keepdim=True).log()
                logprobs[rows] = (logits.gather(1, t) - log_partition)[:, 0]
                if settings.entropy:
                    # H = log-partition - mean logit; relative to the peak both are small, which saves precision.
                    mean = torch.linalg.vecdot(softmax, logits.sub_(peak))
                    entropy[rows] = (log_partition - peak)[:, 0] - mean
                if not (wants_hidden or wants_weight):
                    continue
                residual = _residual(softmax, t, cap_slope).to(hidden.dtype)
                if slope is not None:
                    torch.mm(residual, matrix, out=slope[rows])
                if keeps:
                    kept.append(residual)
        ctx.save_for_backward(hidden, weight, targets, slope, *kept)
        ctx.settings = settings
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _grad_entropy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets, slope, *kept = ctx.saved_tensors
        chunk, temperature = ctx.settings.chunk, ctx.settings.temperature
        # The residual softmax - onehot is minus the derivative.
        upstream = (grad / -temperature)[:, None]
        grad_hidden = None if slope is None else (slope * upstream).to(hidden.dtype)
        if not ctx.needs_input_grad[1]:
            return grad_hidden, None, None, None
        grad_weight = torch.zeros_like(weight)
        buffer = chunk_buffer(hidden, weight, chunk, grad.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(hidden.dtype)
            for i, start in enumerate(range(0, len(hidden), chunk)):
                rows = slice(start, start + chunk)
                if i < len(kept):
                    residual = kept[i]
                else:
                    logits, cap_slope = _logits(hidden[rows], matrix, ctx.settings, buffer)
                    residual = _residual(torch.softmax(logits, -1), targets[rows, None], cap_slope).to(hidden.dtype)
                add_product(grad_weight, residual.T, (hidden[rows] * upstream[rows]).to(hidden.dtype))
        return grad_hidden, grad_weight, None, None


def _logits(
    hidden: torch.Tensor, matrix: torch.Tensor, settings: _Settings, buffer: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits ``[N, V]`` of a chunk of N positions, in ``buffer``, and the derivative of their soft cap, if any."""
    logits = logits_into(buffer, hidden, matrix)
    slope = cap_logits(logits, settings.softcap)
    return logits if settings.temperature == 1.0 else logits.div_(settings.temperature), slope


def _residual(softmax: torch.Tensor, targets: torch.Tensor, cap_slope: torch.Tensor | None) -> torch.Tensor:
    """Softmax minus onehot, times the soft cap's derivative, ``[N, V]``, in place."""
    residual = softmax.scatter_add_(1, targets, softmax.new_full((), -1.0).expand_as(targets))
    return residual if cap_slope is None else residual.mul_(cap_slope)


def _plain_chunk(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of a chunk, in differentiable operations."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden, weight.to(hidden.dtype)).to(torch.promote_types(hidden.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    scores = torch.log_softmax(logits / temperature, -1)
    return scores.gather(1, targets[:, None])[:, 0], -(scores.exp() * scores).sum(-1)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
