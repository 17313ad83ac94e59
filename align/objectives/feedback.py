"""Losses on responses that are labelled desirable or not, without pairs: KTO and its relative.

Each loss is a frozen dataclass: its fields are its settings, and calling it with the log-probs of B responses returns B
losses. To add one, subclass ``FeedbackLoss``; recipes find it by its class name, or by class path if it is defined
outside this module.

Legend: B responses with feedback.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from align.objectives.checks import check_setting
from align.objectives.masked import Total, one_process


class FeedbackLogprobs(NamedTuple):
    """Log-probs of B responses with feedback.

    Attributes:
        policy: ``[B]`` log-prob of the response under the policy, summed over its tokens, nats.
        reference: ``[B]`` the same under the reference.
        desirable: ``[B]`` bool, the label.
        tokens: ``[B]`` number of tokens in the response; 0 in padding.
        reference_point: ``[]`` z0, the estimated KL from the reference (``reference_point``), nats, without gradient; 0
            if the loss needs none.
    """

    policy: torch.Tensor
    reference: torch.Tensor
    desirable: torch.Tensor
    tokens: torch.Tensor
    reference_point: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """``[B]``."""
        return self.policy.shape

    def log_ratios(self) -> torch.Tensor:
        """Log(policy / reference) of the responses, ``[B]`` nats."""
        return self.policy - self.reference

    def distances(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Size of the log-ratio of each response, ``[1, B]``: nats, and nats per token."""
        sizes = self.log_ratios().abs()[None]
        return sizes, sizes / self.tokens.clamp(min=1)

    def at_reference(self) -> "FeedbackLogprobs":
        """What they would be if the policy were the reference."""
        return self._replace(policy=self.reference, reference_point=torch.zeros_like(self.reference_point))


class FeedbackLosses(NamedTuple):
    """Losses of B responses, with the implicit rewards behind them.

    Attributes:
        loss: ``[B]`` to be differentiated.
        reward: ``[B]`` implicit reward of the response; logged, never differentiated.
        gain: ``[B]`` reward relative to the reference point, positive where it is on the side of its label; logged,
            never differentiated.
    """

    loss: torch.Tensor
    reward: torch.Tensor
    gain: torch.Tensor


class FeedbackLoss(ABC):
    """Base class of the losses.

    Attributes:
        needs_reference: whether the loss reads the reference's log-probs; the rewards of all feedback losses do.
        needs_reference_point: whether the loss reads the reference point. If not, the policy reads no mismatched
            responses.
    """

    needs_reference: ClassVar[bool] = True
    needs_reference_point: ClassVar[bool] = True

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of desirable and undesirable responses."""
        return 1.0, 1.0

    @abstractmethod
    def __call__(self, logprobs: FeedbackLogprobs) -> FeedbackLosses:
        """The loss of each response.

        A response of padding has 0 tokens and log-probs of 0. Its loss and gradient must be finite; the caller leaves
        it out of the mean.
        """


@dataclass(frozen=True)
class KTO(FeedbackLoss):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, equation 7; equation 8 bounds the weights)."""

    beta: float = 0.1
    """> 0, reward per nat of log-ratio; a larger beta keeps the policy closer to the reference."""
    desirable_weight: float = 1.0
    """>= 0, weight of desirable responses, the paper's lambda_D"""
    undesirable_weight: float = 1.0
    """>= 0, weight of undesirable responses, the paper's lambda_U; weight times count should be about equal on both
    sides, that of the desirable ones up to 4/3 of the other"""

    def __post_init__(self) -> None:
        """Check the settings."""
        check_setting(self, "beta", 0 < self.beta < math.inf, "above 0")
        for name in ("desirable_weight", "undesirable_weight"):
            check_setting(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of desirable and undesirable responses."""
        return self.desirable_weight, self.undesirable_weight

    def __call__(self, logprobs: FeedbackLogprobs) -> FeedbackLosses:
        """Weight times 1 - sigmoid(gain).

        The gain is beta (log-ratio - z0) of a desirable response, and beta (z0 - log-ratio) of an undesirable one.
        """
        reward = self.beta * logprobs.log_ratios()
        relative = reward - self.beta * logprobs.reference_point
        gain = torch.where(logprobs.desirable, relative, -relative)
        weight = torch.where(logprobs.desirable, self.desirable_weight, self.undesirable_weight)
        # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where sigmoid(x) is nearly 1.
        return FeedbackLosses(weight * (-gain).sigmoid(), reward, gain)


@dataclass(frozen=True)
class APOZeroUnpaired(KTO):
    """Anchored preference optimization on unpaired responses: KTO with the reference point fixed at 0.

    The terms of D'Oosterlinck et al. 2024, equation 7, one for each response: 1 - sigmoid(reward) of a desirable one,
    sigmoid(reward) of an undesirable one.
    """

    needs_reference_point: ClassVar[bool] = False

    def __call__(self, logprobs: FeedbackLogprobs) -> FeedbackLosses:
        """Weight times 1 - sigmoid(gain), where the gain is the reward of a desirable response, else its negative."""
        return super().__call__(logprobs._replace(reference_point=torch.zeros_like(logprobs.reference_point)))


def reference_point(
    policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor, *, total: Total = one_process
) -> torch.Tensor:
    """KTO's z0: the estimated KL of policy from reference, max(0, mean log-ratio of mismatched responses).

    Ethayarajh et al. 2024, section 4: each prompt with the response of another record, so that nothing is sampled. The
    estimate is biased, but never negative, and no gradient passes through it.

    Args:
        policy: ``[B]`` log-prob of each mismatched response under the policy, nats.
        reference: ``[B]`` the same under the reference.
        mask: ``[B]`` bool, True = counts.
        total: sums over ranks.

    Returns:
        ``[]`` nats, at least 0; 0 if nothing counts.
    """
    ratios = (policy - reference).detach().where(mask, 0)
    added, count = total(torch.stack([ratios.sum(), mask.sum().to(ratios.dtype)]))
    return (added / count.clamp(min=1)).clamp(min=0)
