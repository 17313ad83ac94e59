r"""DPO-Positive: DPO that also penalises a chosen response for becoming less likely (Pal et al. 2024, equation 3).

Copy this file to the directory you run align in, then:

    align fit --config recipes/tiny/dpo.yaml --model.init_args.loss my_loss.DPOPositive \
        --model.init_args.loss.init_args.penalty 5
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import PairLogprobs, PairLosses, PreferenceLoss


@dataclass(frozen=True)
class DPOPositive(PreferenceLoss):
    """-log sigmoid(beta * (log-ratio chosen - log-ratio rejected - penalty * max(0, -log-ratio chosen)))."""

    beta: float = 0.1
    """Reward per nat of log-ratio"""
    penalty: float = 5.0
    """Weight of the chosen response's loss of log-prob, the paper's lambda"""

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.penalty >= 0:
            raise ValueError(f"penalty is {self.penalty}; it must be at least 0")

    def __call__(self, pairs: PairLogprobs) -> PairLosses:
        """See the class."""
        chosen, rejected = pairs.log_ratios()
        reward_chosen = self.beta * (chosen - self.penalty * F.relu(-chosen))
        reward_rejected = self.beta * rejected
        return PairLosses(-F.logsigmoid(reward_chosen - reward_rejected), reward_chosen, reward_rejected)
