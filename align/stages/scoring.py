"""From responses to scores: the reward, its normalisation, its clipping, and the penalty for not ending.

Legend: B responses, T tokens of the longest row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from align.rewards import Reward, RewardModel
from align.stages.ppo_settings import ScoringConfig
from align.stages.rollout import Rollout

Total = Callable[[torch.Tensor], torch.Tensor]
"""Adds a tensor up over ranks"""


class Scores(NamedTuple):
    """What responses are worth.

    Attributes:
        rewards: ``[B]`` float32, as the reward gave them, normalised if so set.
        scores: ``[B]`` float32, what is optimised, the KL aside: clipped, and without the penalty for not ending.
    """

    rewards: torch.Tensor
    scores: torch.Tensor


class RewardStatistics:
    """Mean and variance of all rewards of a run (Chan et al. 1979: batches merged by their sums of squares).

    Attributes:
        count: rewards so far.
        mean: of them.
        squares: sum of squared distances from the mean.
    """

    def __init__(self) -> None:
        """Start from nothing."""
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    def update(self, rewards: torch.Tensor, total: Total) -> None:
        """Add the rewards ``[B]`` of an iteration, of all ranks."""
        wide = rewards.double()
        count, added = total(torch.stack([torch.ones_like(wide).sum(), wide.sum()])).tolist()
        mean = added / count
        squares = float(total((wide - mean).square().sum()))
        whole, step = self.count + count, mean - self.mean
        self.squares += squares + step**2 * self.count * count / whole
        self.mean += step * count / whole
        self.count = whole

    def normalise(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards ``[B]`` minus the mean, over the (unbiased) standard deviation; only the mean where that is 0."""
        deviation = (self.squares / max(self.count - 1, 1)) ** 0.5
        return (rewards - self.mean) / (deviation or 1.0)

    def state_dict(self) -> dict[str, float]:
        """Count, mean and sum of squares."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from ``state_dict``."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


def rewards_of(reward: Reward, rollout: Rollout) -> torch.Tensor:
    """What the reward says of each response.

    Args:
        reward: a reward model reads the ids as they were sampled, a function the texts.
        rollout: B responses.

    Returns:
        ``[B]`` float32.

    Raises:
        ValueError: the reward failed, or gave another number of scores, or one that is not finite.
    """
    device = rollout.ids.device
    if isinstance(reward, RewardModel):
        rewards = reward.score_ids(rollout.ids, torch.tensor(rollout.lengths, device=device))
        if not bool(rewards.isfinite().all()):
            row = int((~rewards.isfinite()).nonzero()[0])
            raise ValueError(
                f"reward {reward.name!r} gave {rewards[row].item()} for response {row} of {len(rewards)} "
                f"({rollout.responses[row][:60]!r}); it must be a finite number"
            )
        return rewards
    return torch.tensor(reward(rollout.prompts, rollout.responses), dtype=torch.float32, device=device)


def score(rewards: torch.Tensor, finished: torch.Tensor, config: ScoringConfig) -> torch.Tensor:
    """Scores of responses: rewards clipped, minus the penalty where a response was cut.

    Args:
        rewards: ``[B]``.
        finished: ``[B]`` bool, whether the policy ended the response itself.
        config: clip and penalty.

    Returns:
        ``[B]``.
    """
    clip = config.reward_clip
    kept = rewards if clip is None else rewards.clamp(-clip, clip)
    return kept - config.missing_eos_penalty * (~finished)


def check_reward(reward: Reward, tokenizer: Any) -> None:
    """Refuse a reward model whose ids mean other text than the policy's.

    Raises:
        ValueError: the fingerprints of the tokenizers differ.
    """
    if isinstance(reward, RewardModel):
        reward.check_tokenizer(tokenizer)
