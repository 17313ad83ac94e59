"""Losses on preference pairs that need no reward model: DPO and its relatives.

Each loss is a frozen dataclass: its fields are its settings, and calling it with the log-probs of B pairs returns B
losses. To add one, subclass ``PreferenceLoss``; recipes find it by its class name, or by class path if it is defined
outside this module.

Legend: B pairs.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F

from align.objectives.checks import check_setting


class PairLogprobs(NamedTuple):
    """Log-probs of B preference pairs.

    Attributes:
        chosen: ``[B]`` log-prob of the chosen response under the policy, summed over its tokens, nats.
        rejected: ``[B]`` the same for the rejected response.
        reference_chosen: ``[B]`` log-prob of the chosen response under the reference; None if the loss needs none.
        reference_rejected: ``[B]`` the same for the rejected response.
        chosen_tokens: ``[B]`` number of tokens in the chosen response; 0 in pairs of padding.
        rejected_tokens: ``[B]`` number of tokens in the rejected response.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    reference_chosen: torch.Tensor | None
    reference_rejected: torch.Tensor | None
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """``[B]``."""
        return self.chosen.shape

    def log_ratios(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log(policy / reference) of the chosen and the rejected responses, ``[B]`` each, nats.

        Raises:
            ValueError: there are no reference log-probs.
        """
        if self.reference_chosen is None or self.reference_rejected is None:
            raise ValueError("reference log-probs are None: set needs_reference = True on the loss that reads them")
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected

    def distances(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Size of the log-ratio of each response, ``[2, B]``: nats, and nats per token."""
        sizes = torch.stack(self.log_ratios()).abs()
        return sizes, sizes / torch.stack([self.chosen_tokens, self.rejected_tokens]).clamp(min=1)

    def at_reference(self) -> "PairLogprobs":
        """What they would be if the policy were the reference."""
        assert self.reference_chosen is not None
        assert self.reference_rejected is not None
        return self._replace(chosen=self.reference_chosen, rejected=self.reference_rejected)

    def mean_log_ratios(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``log_ratios`` divided by the number of tokens, ``[B]`` each, nats per token."""
        return self._per_token(*self.log_ratios())

    def mean_logprobs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Policy log-probs divided by the number of tokens, ``[B]`` each, nats per token."""
        return self._per_token(self.chosen, self.rejected)

    def _per_token(self, chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return chosen / self.chosen_tokens.clamp(min=1), rejected / self.rejected_tokens.clamp(min=1)


class PairLosses(NamedTuple):
    """Losses of B pairs, with the implicit rewards they compare.

    Attributes:
        loss: ``[B]`` to be differentiated.
        reward_chosen: ``[B]`` implicit reward of the chosen response; logged, never differentiated.
        reward_rejected: ``[B]`` the same for the rejected response. Accuracy and margin are computed from both.
    """

    loss: torch.Tensor
    reward_chosen: torch.Tensor
    reward_rejected: torch.Tensor


class PreferenceLoss(ABC):
    """Base class of the losses.

    Attributes:
        needs_reference: whether the loss reads the reference's log-probs. If not, no reference is loaded.
    """

    needs_reference: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, pairs: PairLogprobs) -> PairLosses:
        """The loss of each pair.

        A pair of padding has 0 tokens and log-probs of 0. Its loss and gradient must be finite; the caller leaves it
        out of the mean.
        """


@dataclass(frozen=True)
class DPO(PreferenceLoss):
    """Direct preference optimization (Rafailov et al. 2023, equation 7)."""

    beta: float = 0.1
    """> 0, reward per nat of log-ratio; a larger beta keeps the policy closer to the reference."""

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_positive(self, "beta")

    def __call__(self, pairs: PairLogprobs) -> PairLosses:
        """-log sigmoid(margin), where margin = beta * (log-ratio chosen - log-ratio rejected)."""
        chosen, rejected = _scaled(self.beta, pairs.log_ratios())
        return PairLosses(-F.logsigmoid(chosen - rejected), chosen, rejected)


@dataclass(frozen=True)
class CDPO(PreferenceLoss):
    """Conservative DPO, for labels of which some are flipped (Mitchell 2023)."""

    beta: float = 0.1
    """> 0, reward per nat of log-ratio; a larger beta keeps the policy closer to the reference."""
    label_smoothing: float = 0.1
    """Probability that a label is flipped, in [0, 0.5)."""

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_positive(self, "beta")
        _check_flip_rate(self, "label_smoothing")

    def __call__(self, pairs: PairLogprobs) -> PairLosses:
        """Cross-entropy of DPO's margin with labels that are flipped with probability e = label_smoothing.

        -(1 - e) log sigmoid(margin) - e log sigmoid(-margin).
        """
        chosen, rejected = _scaled(self.beta, pairs.log_ratios())
        margin, flipped = chosen - rejected, self.label_smoothing
        return PairLosses(-(1 - flipped) * F.logsigmoid(margin) - flipped * F.logsigmoid(-margin), chosen, rejected)


@dataclass(frozen=True)
class RobustDPO(PreferenceLoss):
    """Unbiased estimate of the DPO loss on clean labels, from labels flipped at a known rate.

    Chowdhury et al. 2024, equation 12. Unlike CDPO it may be negative.
    """

    beta: float = 0.1
    """> 0, reward per nat of log-ratio; a larger beta keeps the policy closer to the reference."""
    label_smoothing: float = 0.1
    """Probability that a label is flipped, in [0, 0.5)."""

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_positive(self, "beta")
        _check_flip_rate(self, "label_smoothing")

    def __call__(self, pairs: PairLogprobs) -> PairLosses:
        """(-(1 - e) log sigmoid(margin) + e log sigmoid(-margin)) / (1 - 2 e), where e = label_smoothing."""
        chosen, rejected = _scaled(self.beta, pairs.log_ratios())
        margin, flipped = chosen - rejected, self.label_smoothing
        loss = -(1 - flipped) * F.logsigmoid(margin) + flipped * F.logsigmoid(-margin)
        return PairLosses(loss / (1 - 2 * flipped), chosen, rejected)


@dataclass(frozen=True)
class IPO(PreferenceLoss):
    """Identity preference optimization (Azar et al. 2023, equation 17)."""

    beta: float = 0.1
    """> 0, the paper's tau: the loss is lowest at a margin of 1 / (2 beta) nats."""
    per_token: bool = True
    """Divide each log-ratio by its response's tokens, as IPO's authors do in experiments; false: sum, as printed."""

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_positive(self, "beta")

    def __call__(self, pairs: PairLogprobs) -> PairLosses:
        """(log-ratio chosen - log-ratio rejected - 1 / (2 beta))^2."""
        chosen, rejected = pairs.mean_log_ratios() if self.per_token else pairs.log_ratios()
        loss = (chosen - rejected - 1 / (2 * self.beta)).square()
        return PairLosses(loss, self.beta * chosen, self.beta * rejected)


@dataclass(frozen=True)
class Hinge(PreferenceLoss):
    """SLiC's hinge loss on DPO's margin (Zhao et al. 2023; Liu et al. 2023, section 2)."""

    beta: float = 0.1
    """> 0, reward per nat of log-ratio; the gradient vanishes once the margin exceeds 1 / beta nats."""

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_positive(self, "beta")

    def __call__(self, pairs: PairLogprobs) -> PairLosses:
        """max(0, 1 - margin)."""
        chosen, rejected = _scaled(self.beta, pairs.log_ratios())
        return PairLosses(F.relu(1 - (chosen - rejected)), chosen, rejected)


@dataclass(frozen=True)
class LengthNormalisedDPO(PreferenceLoss):
    """DPO with log-ratios per token, so that longer responses earn no reward (Meng et al. 2024, table 5; Tulu 3)."""

    beta: float = 2.0
    """> 0, reward per nat of log-ratio per token; needs to be much larger than DPO's."""

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_positive(self, "beta")

    def __call__(self, pairs: PairLogprobs) -> PairLosses:
        """-log sigmoid(margin), with each log-ratio divided by its response's tokens."""
        chosen, rejected = _scaled(self.beta, pairs.mean_log_ratios())
        return PairLosses(-F.logsigmoid(chosen - rejected), chosen, rejected)


@dataclass(frozen=True)
class SimPO(PreferenceLoss):
    """SimPO: log-probs per token in place of log-ratios, and a target margin (Meng et al. 2024, equation 6)."""

    needs_reference: ClassVar[bool] = False
    beta: float = 2.0
    """> 0, reward per nat of log-prob per token."""
    gamma: float = 0.5
    """>= 0, margin between the rewards that the loss asks for."""

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_positive(self, "beta")
        check_setting(self, "gamma", 0 <= self.gamma < math.inf, "at least 0")

    def __call__(self, pairs: PairLogprobs) -> PairLosses:
        """-log sigmoid(margin - gamma), where margin = beta * (chosen - rejected), log-probs per token."""
        chosen, rejected = _scaled(self.beta, pairs.mean_logprobs())
        return PairLosses(-F.logsigmoid(chosen - rejected - self.gamma), chosen, rejected)


@dataclass(frozen=True)
class ORPO(PreferenceLoss):
    """Odds ratio preference optimization: an NLL and a log odds ratio (Hong et al. 2024, equation 6)."""

    needs_reference: ClassVar[bool] = False
    beta: float = 0.1
    """> 0, weight of the odds ratio, the paper's lambda."""

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_positive(self, "beta")

    def __call__(self, pairs: PairLogprobs) -> PairLosses:
        """-log p(chosen) - beta * log sigmoid(log odds(chosen) - log odds(rejected)).

        p is the geometric mean of a response's token probabilities, odds(p) = p / (1 - p).
        """
        chosen, rejected = pairs.mean_logprobs()
        loss = -chosen - self.beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))
        return PairLosses(loss, self.beta * chosen, self.beta * rejected)


@dataclass(frozen=True)
class APOZero(PreferenceLoss):
    """Anchored preference optimization, for chosen responses better than the policy's own.

    D'Oosterlinck et al. 2024, equation 7. Unlike DPO it raises the chosen response's likelihood itself.
    """

    beta: float = 0.1
    """> 0, reward per nat of log-ratio; a larger beta keeps the policy closer to the reference."""

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_positive(self, "beta")

    def __call__(self, pairs: PairLogprobs) -> PairLosses:
        """1 - sigmoid(reward chosen) + sigmoid(reward rejected), with reward = beta * log-ratio."""
        chosen, rejected = _scaled(self.beta, pairs.log_ratios())
        return PairLosses(1 - chosen.sigmoid() + rejected.sigmoid(), chosen, rejected)


def _scaled(beta: float, values: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    chosen, rejected = values
    return beta * chosen, beta * rejected


def _log_odds(logprob: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) from ``log p``; p is kept a millionth below 1, where the odds and their gradient diverge."""
    logprob = logprob.clamp(max=-1e-6)
    return logprob - torch.log(-torch.expm1(logprob))


def _check_positive(loss: PreferenceLoss, name: str) -> None:
    check_setting(loss, name, 0 < getattr(loss, name) < math.inf, "above 0")


def _check_flip_rate(loss: PreferenceLoss, name: str) -> None:
    check_setting(loss, name, 0 <= getattr(loss, name) < 0.5, "in [0, 0.5)")
