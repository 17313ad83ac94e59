"""Losses and estimators: pure functions, or frozen dataclasses with one pure method; no logging, no Lightning.

The KL controllers are the exception: a number that moves, and nothing else.
"""

from align.objectives.advantages import gae, grpo, rloo
from align.objectives.cross_entropy import NextTokenLoss, linear_cross_entropy, next_token_loss, row_nll
from align.objectives.kl import KLKind, KLUse, check_kl_use, kl_estimate
from align.objectives.kl_control import AdaptiveKL, FixedKL
from align.objectives.logprobs import response_logprobs, sequence_logprobs, token_logprobs, token_logprobs_and_entropy
from align.objectives.masked import masked_mean, masked_sum, masked_var, masked_whiten
from align.objectives.policy import PolicyLoss, ppo_policy_loss, ppo_value_loss
from align.objectives.preference import PairLogprobs, PairLosses, PreferenceLoss
from align.objectives.reward import bradley_terry_loss

__all__ = [
    "AdaptiveKL",
    "FixedKL",
    "KLKind",
    "KLUse",
    "NextTokenLoss",
    "PairLogprobs",
    "PairLosses",
    "PolicyLoss",
    "PreferenceLoss",
    "bradley_terry_loss",
    "check_kl_use",
    "gae",
    "grpo",
    "kl_estimate",
    "linear_cross_entropy",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "masked_whiten",
    "next_token_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "response_logprobs",
    "rloo",
    "row_nll",
    "sequence_logprobs",
    "token_logprobs",
    "token_logprobs_and_entropy",
]
