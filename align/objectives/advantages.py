"""How much better a token or a response was than expected; none of it is differentiable.

Legend: B responses, N tokens of a response, G prompts, K responses to each.
"""

import torch


@torch.no_grad()
def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = sum_k (gamma lam)^k delta_{t+k}, up to the last token that counts: a
    response is a whole episode, so the value after it is 0, cut short or not.

    Args:
        rewards: ``[B, N]`` of each token.
        values: ``[B, N]`` expected return before each token was chosen.
        mask: ``[B, N]`` bool, True on the response: one run in each row, padding after (or before) it.
        gamma: discount per token, in [0, 1].
        lam: 0 trusts the values, 1 the rewards, in [0, 1].

    Returns:
        tuple: ``advantages [B, N]``, not whitened, and ``returns [B, N]`` = advantages + values, what the value model
        should have said; both 0 where the mask is False.

    Raises:
        ValueError: a factor outside [0, 1], shapes that differ, or a mask with holes.
    """
    for name, factor in (("gamma", gamma), ("lam", lam)):
        if not 0 <= factor <= 1:
            raise ValueError(f"{name} is {factor}; it must lie in [0, 1]")
    if not rewards.shape == values.shape == mask.shape:
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and mask {tuple(mask.shape)} must be alike"
        )
    starts = mask[:, 1:] & ~mask[:, :-1]
    if (starts.sum(1) + mask[:, 0] > 1).any():
        raise ValueError("the mask has holes: each row must count one run of tokens")
    rewards, values = rewards.masked_fill(~mask, 0), values.masked_fill(~mask, 0)
    # Values outside the mask are now 0, and so is the one after the last token.
    after = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], 1)
    deltas = (rewards + gamma * after - values).masked_fill(~mask, 0)
    advantages = torch.empty_like(deltas)
    running = deltas.new_zeros(len(deltas))
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    advantages.masked_fill_(~mask, 0)
    return advantages, advantages + values


@torch.no_grad()
def rloo(rewards: torch.Tensor) -> torch.Tensor:
    """Reward minus the mean of the prompt's other responses (Ahmadian et al. 2024, equation 5).

    Args:
        rewards: ``[G, K]`` of whole responses.

    Returns:
        ``[G, K]`` advantages; they sum to 0 in each group.

    Raises:
        ValueError: a group of one has no others.
    """
    size = _group_size(rewards)
    return (rewards - rewards.mean(1, keepdim=True)) * (size / (size - 1))


@torch.no_grad()
def grpo(rewards: torch.Tensor, *, scale_by_std: bool = True, eps: float = 1e-4) -> torch.Tensor:
    """Reward minus the group's mean, over its standard deviation (Shao et al. 2024, section 4.1.2).

    The deviation is the unbiased one (divided by K - 1), as in TRL. Scaling blows up groups whose rewards are nearly
    equal; without it this is Dr. GRPO's advantage (Liu et al. 2025).

    Args:
        rewards: ``[G, K]`` of whole responses.
        scale_by_std: divide by the deviation.
        eps: added to the deviation; a group of equal rewards gives 0.

    Returns:
        ``[G, K]`` advantages; they sum to 0 in each group.

    Raises:
        ValueError: a group of one has nothing to compare with.
    """
    _group_size(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + eps) if scale_by_std else centred


def _group_size(rewards: torch.Tensor) -> int:
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards {tuple(rewards.shape)} must be [prompts, responses] with two responses or more")
    return rewards.shape[1]
