"""From scores to advantages: GAE on token rewards, or the comparison of a prompt's responses.

Legend: B responses, N tokens of a response, G prompts, K responses to each.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from align.algorithms.ppo_settings import Algorithm, UpdateConfig
from align.objectives import gae, grpo, rloo
from align.training.float64 import wide

Total = Callable[[torch.Tensor], torch.Tensor]
"""Adds a tensor up over ranks"""


class Estimate(NamedTuple):
    """What the update learns from.

    Attributes:
        advantages: ``[B, N]``, for ppo whitened over all tokens of all ranks.
        returns: ``[B, N]``, what the values should have been; 0 without a value model.
    """

    advantages: torch.Tensor
    returns: torch.Tensor


def token_rewards(scores: torch.Tensor, penalties: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The reward of each token: minus its penalty, plus the response's score at the last one.

    Args:
        scores: ``[B]``.
        penalties: ``[B, N]``, what the KL costs at each token; 0 where the mask is False.
        mask: ``[B, N]`` bool, True on the response.

    Returns:
        ``[B, N]``.
    """
    rewards = -penalties
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def estimate(
    algorithm: Algorithm,
    scores: torch.Tensor,
    penalties: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    *,
    config: UpdateConfig,
    group_size: int,
    total: Total,
) -> Estimate:
    """Advantages of each token, by the algorithm's estimator.

    Args:
        algorithm: ppo: GAE (Schulman et al. 2016); grpo: Shao et al. 2024; rloo: Ahmadian et al. 2024. The last two
            give every token of a response the response's advantage.
        scores: ``[B]``, the responses to a prompt together.
        penalties: ``[B, N]``, KL coefficient times the estimate of each token's KL, where the KL is in the reward.
        values: ``[B, N]``; not read without a value model.
        mask: ``[B, N]`` bool.
        config: gamma, lambda, scale_by_std.
        group_size: K.
        total: adds up over ranks.
    """
    if algorithm == "ppo":
        rewards = token_rewards(scores, penalties, mask)
        advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.gae_lambda)
        return Estimate(whiten_over_ranks(advantages, mask, total), returns)
    grouped = (scores - penalties.sum(1)).view(-1, group_size)
    compared = grpo(grouped, scale_by_std=config.scale_by_std) if algorithm == "grpo" else rloo(grouped)
    advantages = compared.view(-1, 1).expand(mask.shape).masked_fill(~mask, 0)
    return Estimate(advantages, torch.zeros_like(advantages))


def whiten_over_ranks(values: torch.Tensor, mask: torch.Tensor, total: Total, *, eps: float = 1e-8) -> torch.Tensor:
    """``masked_whiten`` over the tokens of all ranks.

    Args:
        values: ``[B, N]``.
        mask: ``[B, N]`` bool.
        total: adds up over ranks.
        eps: added to the (unbiased) variance.

    Returns:
        ``[B, N]``; 0 where the mask is False.
    """
    count, mean, squares = _moments(values, mask, total)
    variance = squares / (count - 1).clamp(min=1)
    return ((values - mean) * torch.rsqrt(variance + eps)).masked_fill(~mask, 0)


def explained_over_ranks(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, total: Total) -> torch.Tensor:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 a constant one, below 0 a misleading one.

    Args:
        values: ``[B, N]``.
        returns: ``[B, N]``.
        mask: ``[B, N]`` bool, True = counts.
        total: adds up over ranks.

    Returns:
        ``[]`` float64, over the tokens of all ranks; 0 where the returns vary only by float32's rounding, of themselves
        or of the values that they were made from, since there is nothing to explain.
    """
    returns, values = wide(returns), wide(values)
    mask = mask.to(returns.device)
    _, _, rest = _moments(returns - values, mask, total)
    _, _, whole = _moments(returns, mask, total)
    size = total((returns.square() + values.square()).masked_fill(~mask, 0).sum())
    return torch.where(whole > 1e-12 * size, 1 - rest / whole, torch.zeros_like(whole))


def _moments(values: torch.Tensor, mask: torch.Tensor, total: Total) -> tuple[torch.Tensor, ...]:
    """Count, mean and sum of squared distances from it, each ``[]``, of what the mask counts on all ranks."""
    kept = values.masked_fill(~mask, 0)
    count, added = total(torch.stack([mask.sum().to(values.dtype), kept.sum()]))
    mean = added / count
    return count, mean, total((values - mean).masked_fill(~mask, 0).square().sum())


def check_first_minibatch(iteration: int, approx_kl: float, ratio_max: float, *, exact: bool) -> None:
    """Refuse an update whose policy is not the one that sampled.

    Args:
        iteration: for the line.
        approx_kl: KL(old || new) before any update, nats a token; it ought to be 0.
        ratio_max: largest ratio of new to old probability; it ought to be 1.
        exact: both were computed in at least float32.

    Raises:
        RuntimeError: they are further off than rounding takes them.
    """
    kl_bound, ratio_bound = (1e-4, 1.02) if exact else (1e-2, 1.5)
    if not (approx_kl <= kl_bound and ratio_max <= ratio_bound):
        raise RuntimeError(
            f"the first minibatch of iteration {iteration} has KL(old || new) {approx_kl:.3g} and largest ratio "
            f"{ratio_max:.4g}; before any update they are 0 and 1: the policy that learns is not the one that sampled; "
            "lower rollout.logprob_tolerance to compute old log-probs again"
        )
