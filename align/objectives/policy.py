"""Losses of policy and value model in an update: one number for each token, which an ``Average`` adds up.

Legend: M tokens of all responses, concatenated; R responses.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from align.objectives.averages import Average, ResponseMean


class PolicyLoss(NamedTuple):
    """The policy's loss and what to watch about it.

    Attributes:
        losses: ``[M]`` of the tokens.
        clip_fraction: ``[]`` share of tokens whose gradient the clip removed.
        approx_kl: ``[]`` mean over tokens of k3, KL(old || new) per token, nats.
        ratio_max: ``[]`` the largest new / old probability of a token.
    """

    losses: torch.Tensor
    clip_fraction: torch.Tensor
    approx_kl: torch.Tensor
    ratio_max: torch.Tensor


class Surrogate(ABC):
    """Base of the policy's objectives: estimates, from samples of the old policy, of how much better the new one is.

    Subclass it as a frozen dataclass whose fields are settings.

    Attributes:
        default_average: over tokens, unless the recipe names one; None: that of the advantage estimator.
    """

    default_average: ClassVar[Average | None] = None

    @abstractmethod
    def losses(
        self, log_ratio: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each token.

        Args:
            log_ratio: ``[M]`` log new - log old probability, nats; differentiable.
            advantages: ``[M]``.
            lengths: ``[R]`` int64, tokens of each response.

        Returns:
            tuple: ``[M]`` losses, and ``[M]`` bool, whether the clip removed a token's gradient.
        """


@dataclass(frozen=True)
class TokenClip(Surrogate):
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A), the ratio that of the token (Schulman et al. 2017, equation 7).

    A token's gradient vanishes once its ratio has left the interval in the direction that its advantage pushes. A wider
    upper half (0.28) leaves rare tokens room to become likely: clip-higher of DAPO (Yu et al. 2025, section 3.1).

    Raises:
        ValueError: a bound is out of range.
    """

    low: float = 0.2
    """The ratio is clipped at 1 - low"""
    high: float | None = None
    """The ratio is clipped at 1 + high; None: as far from 1 as low"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        _check_bounds(self.low, self.high)

    def losses(
        self, log_ratio: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Surrogate``."""
        return _clipped(log_ratio.exp(), advantages, self.low, self.high)


@dataclass(frozen=True)
class SequenceClip(Surrogate):
    """The same with the ratio of the whole response: GSPO (Zheng et al. 2025, equations 5 to 7).

    The ratio is the geometric mean over the response's tokens, (new / old probability of the response)^(1 / L), and
    all of its tokens are clipped together. It moves far less than a token's, hence the narrow interval, that of the
    paper's section 5.1.

    Raises:
        ValueError: a bound is out of range.
    """

    low: float = 3e-4
    """The ratio is clipped at 1 - low"""
    high: float | None = 4e-4
    """The ratio is clipped at 1 + high; None: as far from 1 as low"""

    default_average = ResponseMean()

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        _check_bounds(self.low, self.high)

    def losses(
        self, log_ratio: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Surrogate``."""
        rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        added = log_ratio.new_zeros(len(lengths)).index_add(0, rows, log_ratio)
        return _clipped((added / lengths.clamp(min=1)).exp()[rows], advantages, self.low, self.high)


def policy_loss(
    surrogate: Surrogate,
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    lengths: torch.Tensor,
) -> PolicyLoss:
    """The loss of each token by a surrogate, with the movement of the policy since it sampled.

    Args:
        surrogate: the objective.
        logprobs: ``[M]`` of the sampled tokens under the policy now, nats.
        old_logprobs: ``[M]`` under the policy that sampled them.
        advantages: ``[M]``.
        lengths: ``[R]`` int64, tokens of each response.

    Returns:
        PolicyLoss: all but the losses detached; without tokens the rest is 0.

    Raises:
        ValueError: shapes differ, or the surrogate returned another number of losses.
    """
    _check_shapes(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    if int(lengths.sum()) != logprobs.numel():
        raise ValueError(f"lengths add up to {int(lengths.sum())}, but there are {logprobs.numel()} tokens")
    log_ratio = logprobs - old_logprobs
    losses, clipped = surrogate.losses(log_ratio, advantages, lengths)
    if losses.shape != logprobs.shape:
        raise ValueError(
            f"surrogate {type(surrogate).__name__} returned losses {tuple(losses.shape)}: they must be "
            f"{tuple(logprobs.shape)}, one for each token"
        )
    count = max(logprobs.numel(), 1)
    with torch.no_grad():
        approx_kl = (torch.expm1(log_ratio) - log_ratio).sum() / count
        ratio_max = log_ratio.exp().max() if log_ratio.numel() else log_ratio.new_zeros(())
        return PolicyLoss(losses, clipped.sum() / count, approx_kl, ratio_max)


def truncated_importance_weights(logprobs: torch.Tensor, sampled: torch.Tensor, *, cap: float) -> torch.Tensor:
    """min(p / q, cap) of each token: the policy gradient of p from samples of q (Ionides 2008; Yao et al. 2025).

    Yao et al. correct a sampler that computes otherwise than the trainer ("Your Efficient RL Framework Secretly Brings
    You Off-Policy RL Training"). The cap bounds the variance, and biases tokens above it towards q.

    Args:
        logprobs: of the sampled tokens under p, the trainer, nats; any shape.
        sampled: the same under q, the sampler, nats.
        cap: at least 1.

    Raises:
        ValueError: the cap is below 1, or shapes differ.
    """
    if not cap >= 1:
        raise ValueError(f"cap is {cap}; it must be at least 1")
    _check_shapes(logprobs=logprobs, sampled=sampled)
    return (logprobs - sampled).exp().clamp(max=cap)


def value_losses(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, *, clip: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """0.5 max((V - R)^2, (clip(V, old - clip, old + clip) - R)^2) of each token.

    A value that has moved further than ``clip`` towards its return has no gradient left.

    Args:
        values: ``[M]`` of the value model now.
        old_values: ``[M]`` when the responses were sampled.
        returns: ``[M]`` targets of the values.
        clip: how far a value may move in one iteration, > 0, in units of reward.

    Returns:
        tuple: ``[M]`` losses, and ``[]``, the share of tokens whose gradient the clip removed, detached; 0 without any.

    Raises:
        ValueError: the clip is not above 0, or shapes differ.
    """
    if not clip > 0:
        raise ValueError(f"clip is {clip}; it must be above 0")
    _check_shapes(values=values, old_values=old_values, returns=returns)
    plain = (values - returns).square()
    clipped = (torch.clamp(values, old_values - clip, old_values + clip) - returns).square()
    fraction = (clipped > plain).sum() / max(values.numel(), 1)
    return 0.5 * torch.maximum(plain, clipped), fraction


def _clipped(
    ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses ``[M]``, and which of them have no gradient."""
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - low, 1 + (low if high is None else high)) * advantages
    return torch.maximum(plain, clipped), clipped > plain


def _check_bounds(low: float, high: float | None) -> None:
    if not 0 < low < 1:
        raise ValueError(f"surrogate.low is {low}: it must be in (0, 1)")
    if high is not None and not high > 0:
        raise ValueError(f"surrogate.high is {high}: it must be above 0, or null")


def _check_shapes(**tensors: torch.Tensor) -> None:
    (first, of), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != of.shape:
            raise ValueError(f"{name} {tuple(tensor.shape)} and {first} {tuple(of.shape)} must have one shape")
