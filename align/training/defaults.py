"""Default learning rates, by stage, size of the network, and whether adapters train.

A rate is a power law in the number of parameters N (adapters excluded), times 10 for adapters:

    lr(N) = at x (N / size) ^ -exponent

| rule | used by | at | size | exponent |
|---|---|---|---|---|
| `PRETRAINING` | Pretrain of a new network | 6e-4 | 125 M | 0.32 |
| `FINE_TUNING` | SFT; Pretrain from an existing network | 1e-4 | 135 M | 0.4 |
| `REWARD_MODELING` | Reward | 5e-5 | 135 M | 0.4 |
| `PREFERENCES` | DPO and its relatives | 1e-5 | 135 M | 0.4 |
| `REINFORCEMENT` | PPO, GRPO, RLOO | 5e-6 | 135 M | 0.4 |

Sources:
- `PRETRAINING`: a fit to table 2.1 of GPT-3 (Brown et al. 2020, arXiv:2005.14165): 6e-4 at 125 M, 2e-4 at 1.3 B, 1e-4
  at 13 B, 6e-5 at 175 B.
- Adapters take about ten times the rate of full weights, and rates fall with the width W as W^-0.78 (Schulman et al.,
  "LoRA Without Regret", 2025, and the rule of tinker-cookbook for Llama, 5e-4 x (2000 / W)^0.781 for adapters). N grows
  about as W^2, hence the exponent 0.4. At W = 576, the width of SmolLM2-135M, that rule gives 1.3e-3.
- Ratios between stages: Tülu 3 (Lambert et al. 2024, arXiv:2411.15124) trains 8 B at 5e-6 (SFT), 5e-7 (DPO), 3e-6
  (reward model) and 3e-7 (PPO); TRL 1.16 defaults to 2e-5 (SFT) and 1e-6 (DPO, GRPO). SmolLM2-135M itself was
  fine-tuned at 1e-3 in batches of 128 long rows, and then DPO at 1e-6 (alignment-handbook, recipes/smollm2).
- Levels: measured on SmolLM2-135M-Instruct with batches of a few rows (docs/learning_rates.md): LoRA at 1e-3 (SFT) and
  1e-4 (DPO) learn, ten times as much breaks the model.

The rules know nothing of the batch size: for batches of hundreds of rows, rates two to ten times as high are usual.
"""

from dataclasses import dataclass

ADAPTER_FACTOR = 10.0
"""Ratio of an adapter's learning rate to that of full weights"""


@dataclass(frozen=True)
class RateRule:
    """A power law in the number of parameters; see the module for the numbers."""

    at: float
    """Learning rate of full weights at ``size``"""
    size: float
    """Parameters"""
    exponent: float
    """By how much the rate falls with the number of parameters"""

    def lr(self, parameters: int, *, adapters: bool) -> float:
        """The peak learning rate of a run, rounded to two digits.

        Args:
            parameters: of the network, adapters excluded.
            adapters: only adapters (and heads) train.

        Raises:
            ValueError: there are no parameters.
        """
        if parameters < 1:
            raise ValueError(f"parameters is {parameters}; it must be at least 1")
        rate = self.at * (parameters / self.size) ** -self.exponent
        return float(f"{rate * (ADAPTER_FACTOR if adapters else 1.0):.1e}")


PRETRAINING = RateRule(6e-4, 125e6, 0.32)
FINE_TUNING = RateRule(1e-4, 135e6, 0.4)
REWARD_MODELING = RateRule(5e-5, 135e6, 0.4)
PREFERENCES = RateRule(1e-5, 135e6, 0.4)
REINFORCEMENT = RateRule(5e-6, 135e6, 0.4)
