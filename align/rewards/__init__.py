"""Rewards: Python functions, gold rewards, reward models."""

from typing import TYPE_CHECKING, Any

from align.rewards.constraints import ConstraintReward
from align.rewards.functions import SandboxGold, load_reward
from align.rewards.reward import FunctionReward, Reward, RewardFunction
from align.rewards.verifiable import ExactAnswer, Matches, MatchesColumn
from align.tokenizer.prompts import Columns, Prompt

if TYPE_CHECKING:
    from align.rewards.reward_model import RewardModel

__all__ = [
    "Columns",
    "ConstraintReward",
    "ExactAnswer",
    "FunctionReward",
    "Matches",
    "MatchesColumn",
    "Prompt",
    "Reward",
    "RewardFunction",
    "RewardModel",
    "SandboxGold",
    "load_reward",
]


def __getattr__(name: str) -> Any:
    """Import the reward model, and with it torch, the first time it is asked for."""
    if name != "RewardModel":
        raise AttributeError(f"module 'align.rewards' has no attribute {name!r}")
    from align.rewards.reward_model import RewardModel

    return RewardModel
