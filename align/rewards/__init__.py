"""What can score a response: Python functions, the sandbox's gold, reward models."""

from typing import TYPE_CHECKING, Any

from align.rewards.base import FunctionReward, Reward, RewardFunction
from align.rewards.functions import load_reward, sandbox_gold
from align.tokenizer.prompts import Prompt

if TYPE_CHECKING:
    from align.rewards.reward_model import RewardModel

__all__ = ["FunctionReward", "Prompt", "Reward", "RewardFunction", "RewardModel", "load_reward", "sandbox_gold"]


def __getattr__(name: str) -> Any:
    """Import the reward model, and with it torch, the first time it is asked for."""
    if name != "RewardModel":
        raise AttributeError(f"module 'align.rewards' has no attribute {name!r}")
    from align.rewards.reward_model import RewardModel

    return RewardModel
