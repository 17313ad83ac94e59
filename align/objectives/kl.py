"""Estimators of KL(policy || reference), and where the gradient of each is right.

With d = log policy - log reference of a sampled token (Schulman 2020, "Approximating KL divergence"):
K1 = d, unbiased, of high variance; K2 = d^2 / 2, biased; K3 = exp(-d) - 1 + d, unbiased; K2 and K3 are never negative.

A good estimate of the KL need not have a good gradient (Tang and Munos 2025, arXiv:2506.09477; Shah et al. 2025,
arXiv:2512.21852). In expectation over a token that the policy itself sampled:

=========  ==============================================  =================================================
estimator  in the reward: E[k grad log policy]             as a loss: E[grad k]
=========  ==============================================  =================================================
K1         the KL's gradient: right                        0: nothing but noise
K2         penalises tokens that are too rare as much as   the KL's gradient: right
           those that are too frequent
K3         the KL's gradient minus that of the opposite    gradient of the opposite KL: biased, but agrees
           KL(reference || policy): the two cancel near    near the reference, and is what GRPO does
           the reference                                   (Shao et al. 2024, equation 4)
=========  ==============================================  =================================================

So K1 belongs in the reward, K2 and K3 in the loss, and the rest is refused. A loss summed over tokens leaves out what a
token does to the KL of later ones; the reward, carried back by returns, does not.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

KLUse = Literal["reward", "loss"]


class KLEstimator(ABC):
    """Base of the estimators of a sampled token's KL.

    Attributes:
        wrong_in: uses in which its gradient is wrong, each with the reason and what to use instead.
    """

    wrong_in: ClassVar[Mapping[KLUse, str]] = {}

    @abstractmethod
    def estimate(self, logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
        """Estimate KL(policy || reference) at each token; differentiable.

        Args:
            logprobs: any shape, of sampled tokens under the policy, nats.
            reference_logprobs: the same tokens under the reference.

        Returns:
            The shape of ``logprobs``, nats; 0 where both are equal, so padding that holds 0 stays 0.
        """


@dataclass(frozen=True)
class K1(KLEstimator):
    """d = log policy - log reference: unbiased, of high variance."""

    wrong_in = {"loss": "its expected gradient is 0; use K2 or K3"}

    def estimate(self, logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
        """d, the shape of ``logprobs``."""
        return logprobs - reference_logprobs


@dataclass(frozen=True)
class K2(KLEstimator):
    """d^2 / 2: biased, never negative."""

    wrong_in = {"reward": "it penalises tokens that are too rare as much as those that are too frequent; use K1"}

    def estimate(self, logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
        """d^2 / 2, the shape of ``logprobs``."""
        return (logprobs - reference_logprobs).square() / 2


@dataclass(frozen=True)
class K3(KLEstimator):
    """exp(-d) - 1 + d: unbiased, never negative."""

    wrong_in = {"reward": "its expected gradient vanishes near the reference, where it should hold the policy; use K1"}

    def estimate(self, logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
        """exp(-d) - 1 + d, the shape of ``logprobs``."""
        difference = logprobs - reference_logprobs
        # expm1: near the reference k3 is d^2 / 2, which exp(-d) - 1 would round away.
        return torch.expm1(-difference) + difference


DEFAULT_KL_ESTIMATORS: Mapping[KLUse, KLEstimator] = {"reward": K1(), "loss": K3()}
"""The estimator of each use where the recipe names none"""


def check_kl_use(estimator: KLEstimator, use: KLUse) -> None:
    """Refuse an estimator where its gradient is wrong; see the table at the top of the module.

    Raises:
        ValueError: in one line, why, and which estimator to use.
    """
    if reason := estimator.wrong_in.get(use):
        raise ValueError(f"kl.estimator is {type(estimator).__name__} with the KL in the {use}: {reason}")


def distribution_kl(logits: torch.Tensor, reference_logits: torch.Tensor, *, temperature: float = 1.0) -> torch.Tensor:
    """KL(policy || reference) of the next token, over the whole vocabulary.

    Added over the tokens of a sampled response it estimates the KL of responses with less variance than ``K1``: only
    the prefix is left to chance (Amini et al. 2025, arXiv:2504.10637).

    Args:
        logits: ``[..., V]`` of the policy.
        reference_logits: ``[..., V]`` of the reference.
        temperature: divides both.

    Returns:
        ``[...]`` float32, nats; never negative beyond rounding.
    """
    ours, theirs = ((scores.float() / temperature).log_softmax(-1) for scores in (logits, reference_logits))
    return (ours.exp() * (ours - theirs)).sum(-1)
