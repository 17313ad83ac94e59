"""PPO's losses (Schulman et al. 2017): sums over the tokens that count; the caller divides.

All tensors have one shape, such as ``[B, N]`` for B responses of up to N tokens, or ``[M]`` for all their tokens
concatenated. Values where the mask is False are never read, and have no gradient; without a mask every token counts.
"""

from typing import NamedTuple

import torch


class PolicyLoss(NamedTuple):
    """The clipped policy loss of a batch and what to watch about it.

    Attributes:
        loss: ``[]`` sum over counted tokens; divide by the tokens of the whole optimizer step.
        clip_fraction: ``[]`` share of counted tokens whose gradient the clip removed.
        approx_kl: ``[]`` mean over counted tokens of k3, KL(old || new) per token, nats.
        ratio_max: ``[]`` the largest new / old probability among counted tokens.
        tokens: ``[]`` int64, counted tokens. With none, everything above is 0.
    """

    loss: torch.Tensor
    clip_fraction: torch.Tensor
    approx_kl: torch.Tensor
    ratio_max: torch.Tensor
    tokens: torch.Tensor


def ppo_policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    clip: float = 0.2,
) -> PolicyLoss:
    """-min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), summed (equation 7).

    The gradient of a token vanishes once the ratio has left the interval in the direction its advantage pushes.

    Args:
        logprobs: of the sampled tokens under the policy now, nats.
        old_logprobs: under the policy that sampled them.
        advantages: of the tokens.
        mask: bool, True = counts; None: all count.
        clip: half-width of the interval around ratio 1, in (0, 1).

    Returns:
        PolicyLoss: all but the loss detached.

    Raises:
        ValueError: the clip is out of range, or shapes differ.
    """
    if not 0 < clip < 1:
        raise ValueError(f"clip is {clip}; it must lie in (0, 1)")
    _check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    # Filled before exp: padding could overflow there, and infinity times 0 is NaN in the gradient.
    log_ratio, advantages = _filled(logprobs - old_logprobs, mask), _filled(advantages, mask)
    ratio = log_ratio.exp()
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - clip, 1 + clip) * advantages
    tokens = _count(advantages, mask)
    count = tokens.clamp(min=1)
    with torch.no_grad():
        clip_fraction = (clipped > plain).sum() / count
        approx_kl = (torch.expm1(log_ratio) - log_ratio).sum() / count
        ratio_max = _filled(ratio, mask).max() if ratio.numel() else ratio.new_zeros(())
    return PolicyLoss(torch.maximum(plain, clipped).sum(), clip_fraction, approx_kl, ratio_max, tokens)


def truncated_importance_weights(logprobs: torch.Tensor, sampled: torch.Tensor, *, cap: float) -> torch.Tensor:
    """min(p / q, cap) of each token: the policy gradient of p from samples of q (Ionides 2008; Yao et al. 2025).

    Yao et al. correct a sampler that computes otherwise than the trainer ("Your Efficient RL Framework Secretly Brings
    You Off-Policy RL Training"). The cap bounds the variance, and biases tokens above it towards q.

    Args:
        logprobs: of the sampled tokens under p, the trainer, nats.
        sampled: the same under q, the sampler, nats.
        cap: at least 1.

    Raises:
        ValueError: the cap is below 1, or shapes differ.
    """
    if not cap >= 1:
        raise ValueError(f"cap is {cap}; it must be at least 1")
    _check_shapes(None, logprobs=logprobs, sampled=sampled)
    return (logprobs - sampled).exp().clamp(max=cap)


def ppo_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    clip: float = 0.2,
) -> tuple[torch.Tensor, torch.Tensor]:
    """0.5 max((V - R)^2, (clip(V, old - clip, old + clip) - R)^2), summed.

    A value that has moved further than ``clip`` towards its return has no gradient left.

    Args:
        values: of the value model now.
        old_values: when the responses were sampled.
        returns: targets of the values.
        mask: bool, True = counts; None: all count.
        clip: how far a value may move in one iteration, > 0, in units of reward.

    Returns:
        tuple: ``loss []``, a sum over counted tokens, and ``clip fraction []``, the share of them whose gradient the
        clip removed, detached; 0 where nothing counts.

    Raises:
        ValueError: the clip is not above 0, or shapes differ.
    """
    if not clip > 0:
        raise ValueError(f"clip is {clip}; it must be above 0")
    _check_shapes(mask, values=values, old_values=old_values, returns=returns)
    values, old_values, returns = (_filled(x, mask) for x in (values, old_values, returns))
    plain = (values - returns).square()
    clipped = (torch.clamp(values, old_values - clip, old_values + clip) - returns).square()
    fraction = (clipped > plain).sum() / _count(values, mask).clamp(min=1)
    return 0.5 * torch.maximum(plain, clipped).sum(), fraction


def _filled(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The values, 0 where they don't count."""
    return values if mask is None else values.masked_fill(~mask, 0)


def _count(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """``[]`` int64, how many of the values count."""
    return torch.tensor(values.numel(), device=values.device) if mask is None else mask.sum()


def _check_shapes(mask: torch.Tensor | None, **tensors: torch.Tensor) -> None:
    first, *others = (tensors if mask is None else {"mask": mask} | tensors).items()
    for name, tensor in others:
        if tensor.shape != first[1].shape:
            shapes = f"{name} {tuple(tensor.shape)} and {first[0]} {tuple(first[1].shape)}"
            raise ValueError(f"{shapes} must have one shape")
