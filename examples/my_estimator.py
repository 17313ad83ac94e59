"""Your own advantage estimator: a response is as good as its rank among the responses to its prompt.

Only the order of the rewards counts, so one very high reward cannot dominate its group. In the folder of this file:

    align fit --config grpo.yaml --model.init_args.estimator my_estimator.RankEstimator
"""

from dataclasses import dataclass

import torch

from align.objectives import GroupEstimator


@dataclass(frozen=True)
class RankEstimator(GroupEstimator):
    """Advantages evenly spaced from -spread (lowest reward) to spread (highest); equal rewards share their mean rank.

    Raises:
        ValueError: spread is not above 0.
    """

    spread: float = 1.0
    """Advantage of the best response of a group"""

    def __post_init__(self) -> None:
        """Reject impossible settings."""
        if not self.spread > 0:
            raise ValueError(f"estimator.spread is {self.spread}: it must be above 0")

    def compare(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards ``[G, K]`` to advantages ``[G, K]``: responses it beats minus those that beat it, over K - 1."""
        difference = rewards[:, :, None] - rewards[:, None, :]
        return self.spread * difference.sign().sum(2) / (rewards.shape[1] - 1)
