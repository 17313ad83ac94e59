"""Losses that learn from preference pairs without a reward model: DPO and its family.

A loss is a pure function of log-probs in one registry; a new one is a function and a line. Each returns, beside the
loss, the implicit rewards whose difference it works on, so that accuracy and margin mean the same for all.

Legend: B pairs.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


class PairLogprobs(NamedTuple):
    """What a preference loss sees of B pairs.

    Attributes:
        chosen: ``[B]`` summed log-prob of the chosen response under the policy, nats.
        rejected: ``[B]`` the same of the rejected one.
        reference_chosen: ``[B]`` under the reference; None where there is none.
        reference_rejected: ``[B]`` under the reference; None where there is none.
        chosen_tokens: ``[B]`` tokens of the chosen response; 0 on padding.
        rejected_tokens: ``[B]`` tokens of the rejected response.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    reference_chosen: torch.Tensor | None
    reference_rejected: torch.Tensor | None
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor


class PreferenceLoss(NamedTuple):
    """A loss and the implicit rewards behind it.

    Attributes:
        loss: ``[B]`` what to differentiate.
        reward_chosen: ``[B]`` beta times the score the loss compares, detached.
        reward_rejected: ``[B]`` the same of the rejected response.
    """

    loss: torch.Tensor
    reward_chosen: torch.Tensor
    reward_rejected: torch.Tensor


class Strength(NamedTuple):
    """Settings of a loss: see ``preference_loss``."""

    beta: float
    label_smoothing: float
    gamma: float


Loss = Callable[[PairLogprobs, Strength], PreferenceLoss]


def sigmoid(pairs: PairLogprobs, s: Strength) -> PreferenceLoss:
    """DPO: minus log-sigmoid of beta times the margin of the log-ratios (Rafailov et al. 2023, equation 7)."""
    chosen, rejected = _log_ratios(pairs, s.beta)
    return PreferenceLoss(-F.logsigmoid(chosen - rejected), chosen, rejected)


def cdpo(pairs: PairLogprobs, s: Strength) -> PreferenceLoss:
    """Conservative DPO: cross-entropy with labels that are wrong with probability label_smoothing (Mitchell 2023)."""
    chosen, rejected = _log_ratios(pairs, s.beta)
    margin = chosen - rejected
    loss = -(1 - s.label_smoothing) * F.logsigmoid(margin) - s.label_smoothing * F.logsigmoid(-margin)
    return PreferenceLoss(loss, chosen, rejected)


def robust(pairs: PairLogprobs, s: Strength) -> PreferenceLoss:
    """An unbiased estimate of the noiseless DPO loss under flips of that rate (Chowdhury et al. 2024, equation 12)."""
    chosen, rejected = _log_ratios(pairs, s.beta)
    margin = chosen - rejected
    loss = -(1 - s.label_smoothing) * F.logsigmoid(margin) + s.label_smoothing * F.logsigmoid(-margin)
    return PreferenceLoss(loss / (1 - 2 * s.label_smoothing), chosen, rejected)


def ipo(pairs: PairLogprobs, s: Strength) -> PreferenceLoss:
    """IPO on log-ratios averaged over tokens, the form that TRL found its authors to use: see ``ipo_sum``."""
    chosen, rejected = _mean_log_ratios(pairs, s.beta)
    return _squared_to_target(chosen, rejected, s.beta)


def ipo_sum(pairs: PairLogprobs, s: Strength) -> PreferenceLoss:
    """IPO as printed, (margin - 1 / (2 beta))^2 with summed log-ratios (Azar et al. 2023, equation 17)."""
    chosen, rejected = _log_ratios(pairs, s.beta)
    return _squared_to_target(chosen, rejected, s.beta)


def hinge(pairs: PairLogprobs, s: Strength) -> PreferenceLoss:
    """SLiC's hinge on DPO's margin, max(0, 1 - beta * margin) (Zhao et al. 2023; Liu et al. 2023, section 2)."""
    chosen, rejected = _log_ratios(pairs, s.beta)
    return PreferenceLoss(F.relu(1 - (chosen - rejected)), chosen, rejected)


def length_normalised(pairs: PairLogprobs, s: Strength) -> PreferenceLoss:
    """DPO on log-ratios averaged over tokens, so that length earns nothing (Meng et al. 2024, table 5; Tulu 3)."""
    chosen, rejected = _mean_log_ratios(pairs, s.beta)
    return PreferenceLoss(-F.logsigmoid(chosen - rejected), chosen, rejected)


def simpo(pairs: PairLogprobs, s: Strength) -> PreferenceLoss:
    """SimPO: average log-probs, no reference, a target margin gamma (Meng et al. 2024, equation 6)."""
    chosen, rejected = (s.beta * mean for mean in _mean_logprobs(pairs))
    return PreferenceLoss(-F.logsigmoid(chosen - rejected - s.gamma), chosen, rejected)


def orpo(pairs: PairLogprobs, s: Strength) -> PreferenceLoss:
    """ORPO: the chosen response's per-token NLL plus beta times its log-odds term (Hong et al. 2024, equation 6).

    Odds are those of the geometric mean of a response's token probabilities.
    """
    chosen, rejected = _mean_logprobs(pairs)
    loss = -chosen - s.beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    return PreferenceLoss(loss, s.beta * chosen, s.beta * rejected)


PREFERENCE_LOSSES: dict[str, Loss] = {
    "sigmoid": sigmoid,
    "cdpo": cdpo,
    "robust": robust,
    "ipo": ipo,
    "ipo_sum": ipo_sum,
    "hinge": hinge,
    "simpo": simpo,
    "orpo": orpo,
    "length_normalised": length_normalised,
}
REFERENCE_FREE = frozenset({"simpo", "orpo"})
SMOOTHED = frozenset({"cdpo", "robust"})


def preference_loss(
    name: str,
    pairs: PairLogprobs,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    gamma: float | None = None,
    sft_coef: float = 0.0,
) -> PreferenceLoss:
    """The loss ``name`` of ``PREFERENCE_LOSSES`` on each pair.

    Args:
        name: which loss.
        pairs: log-probs of B pairs.
        beta: > 0. The inverse temperature of the implicit reward (sigmoid, cdpo, robust, hinge, length_normalised,
            simpo); IPO's tau, whose target margin is 1 / (2 beta); ORPO's weight of the odds ratio.
        label_smoothing: share of labels the wrong way round, in [0, 0.5); for cdpo and robust only.
        gamma: the margin simpo asks for, >= 0, in units of its reward; 0.5 by default; for simpo only.
        sft_coef: >= 0, weight of an added negative log-likelihood per token of the chosen response, nats (RPO, Pang et
            al. 2024); orpo has its own.

    Returns:
        PreferenceLoss: of each pair. A pair without tokens gives finite numbers; leave it out of the mean.

    Raises:
        ValueError: an unknown name, a setting out of range or not this loss's, or a missing reference.
    """
    check_preference_settings(name, beta=beta, label_smoothing=label_smoothing, gamma=gamma, sft_coef=sft_coef)
    result = PREFERENCE_LOSSES[name](pairs, Strength(beta, label_smoothing, 0.5 if gamma is None else gamma))
    loss = result.loss
    if sft_coef:
        loss = loss - sft_coef * _mean_logprobs(pairs)[0]
    return PreferenceLoss(loss, result.reward_chosen.detach(), result.reward_rejected.detach())


def needs_reference(name: str) -> bool:
    """Whether the loss ``name`` reads the reference's log-probs.

    Raises:
        ValueError: there is no such loss.
    """
    if name not in PREFERENCE_LOSSES:
        raise ValueError(f"unknown preference loss {name!r}; there are {', '.join(PREFERENCE_LOSSES)}")
    return name not in REFERENCE_FREE


def check_preference_settings(
    name: str, *, beta: float, label_smoothing: float = 0.0, gamma: float | None = None, sft_coef: float = 0.0
) -> None:
    """Refuse settings that ``preference_loss`` could not honour; arguments as there.

    Raises:
        ValueError: one line naming the setting, its value, and what would be right.
    """
    needs_reference(name)
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta is {beta}; it must be above 0")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 0.5)")
    if label_smoothing and name not in SMOOTHED:
        raise ValueError(f"label_smoothing is {label_smoothing}, but {name!r} has none: use 'cdpo' or 'robust', or 0")
    if gamma is not None and name != "simpo":
        raise ValueError(f"gamma is {gamma}, but only 'simpo' has a target margin, not {name!r}: leave it out")
    if gamma is not None and not gamma >= 0:
        raise ValueError(f"gamma is {gamma}; it must not be negative")
    if not sft_coef >= 0:
        raise ValueError(f"sft_coef is {sft_coef}; it must not be negative")
    if sft_coef and name == "orpo":
        raise ValueError(f"sft_coef is {sft_coef}, but 'orpo' brings its own SFT term: leave it at 0")


def _log_ratios(pairs: PairLogprobs, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Beta log(policy / reference) of chosen and rejected responses, ``[B]`` each."""
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        raise ValueError("this preference loss compares with a reference, whose log-probs are missing")
    return beta * (pairs.chosen - pairs.reference_chosen), beta * (pairs.rejected - pairs.reference_rejected)


def _mean_log_ratios(pairs: PairLogprobs, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``_log_ratios`` per token."""
    chosen, rejected = _log_ratios(pairs, beta)
    return chosen / pairs.chosen_tokens.clamp(min=1), rejected / pairs.rejected_tokens.clamp(min=1)


def _mean_logprobs(pairs: PairLogprobs) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob per token of chosen and rejected responses, ``[B]`` each."""
    return pairs.chosen / pairs.chosen_tokens.clamp(min=1), pairs.rejected / pairs.rejected_tokens.clamp(min=1)


def _squared_to_target(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> PreferenceLoss:
    """IPO's loss of rewards: (margin of the log-ratios - 1 / (2 beta))^2."""
    return PreferenceLoss(((chosen - rejected) / beta - 1 / (2 * beta)).square(), chosen, rejected)


def _log_odds(logprob: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of ``log p``; p stops a millionth short of 1, where the odds and their gradient explode."""
    logprob = logprob.clamp(max=-1e-6)
    return logprob - torch.log(-torch.expm1(logprob))
