"""Losses and estimators: pure functions, or frozen dataclasses with one pure method; no logging, no Lightning.

The KL controllers are the exception: each holds one number, the coefficient.
"""

from align.objectives.advantages import (
    GAE,
    GRPO,
    RLOO,
    AdvantageEstimator,
    DrGRPO,
    Estimate,
    GroupEstimator,
    MaxRL,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ScoredResponses,
    gae,
)
from align.objectives.averages import Average, ConstantLength, ResponseMean, TokenMean
from align.objectives.bradley_terry import bradley_terry_loss
from align.objectives.cross_entropy import NextTokenLoss, linear_cross_entropy, next_token_loss, row_nll
from align.objectives.divergence import Divergence, ForwardKL, JensenShannon, ReverseKL, linear_divergence
from align.objectives.feedback import FeedbackLogprobs, FeedbackLoss, FeedbackLosses, reference_point
from align.objectives.kl import (
    DEFAULT_KL_ESTIMATORS,
    K1,
    K2,
    K3,
    KLEstimator,
    KLUse,
    check_kl_use,
    distribution_kl,
)
from align.objectives.kl_control import AdaptiveKL, FixedKL
from align.objectives.logprobs import response_logprobs, sequence_logprobs, token_logprobs, token_logprobs_and_entropy
from align.objectives.masked import Total, explained_variance, masked_whiten, one_process
from align.objectives.policy import (
    PolicyLoss,
    SequenceClip,
    Surrogate,
    TokenClip,
    policy_loss,
    truncated_importance_weights,
    value_losses,
)
from align.objectives.preference import PairLogprobs, PairLosses, PreferenceLoss

__all__ = [
    "AdaptiveKL",
    "AdvantageEstimator",
    "Average",
    "ConstantLength",
    "DrGRPO",
    "DEFAULT_KL_ESTIMATORS",
    "Divergence",
    "Estimate",
    "FeedbackLogprobs",
    "FeedbackLoss",
    "FeedbackLosses",
    "FixedKL",
    "ForwardKL",
    "GAE",
    "GRPO",
    "GroupEstimator",
    "JensenShannon",
    "K1",
    "K2",
    "K3",
    "KLEstimator",
    "KLUse",
    "MaxRL",
    "NextTokenLoss",
    "PairLogprobs",
    "PairLosses",
    "PolicyLoss",
    "PreferenceLoss",
    "RLOO",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
    "ResponseMean",
    "ReverseKL",
    "ScoredResponses",
    "SequenceClip",
    "Surrogate",
    "TokenClip",
    "TokenMean",
    "Total",
    "bradley_terry_loss",
    "check_kl_use",
    "distribution_kl",
    "explained_variance",
    "gae",
    "linear_cross_entropy",
    "linear_divergence",
    "masked_whiten",
    "next_token_loss",
    "one_process",
    "policy_loss",
    "reference_point",
    "response_logprobs",
    "row_nll",
    "sequence_logprobs",
    "token_logprobs",
    "token_logprobs_and_entropy",
    "truncated_importance_weights",
    "value_losses",
]
