"""What can score a response."""

from align.rewards.functions import RewardFunction, load_reward, sandbox_gold

__all__ = ["RewardFunction", "load_reward", "sandbox_gold"]
