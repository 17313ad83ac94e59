"""Rewards: Python functions, gold rewards, reward models."""

from typing import TYPE_CHECKING, Any

from align.rewards.constraints import ConstraintReward, ConstraintsColumn
from align.rewards.functions import SandboxGold, load_reward
from align.rewards.json_schema import JSONSchema, JSONSchemaColumn
from align.rewards.length import Length
from align.rewards.programs import UnitTests
from align.rewards.reward import FunctionReward, Part, Reward, RewardFunction
from align.rewards.verifiable import ExactAnswer, Matches, MatchesColumn
from align.rewards.weighted_sum import WeightedSum
from align.tokenizer.prompts import Columns, Prompt

if TYPE_CHECKING:
    from align.rewards.reward_model import RewardModel

__all__ = [
    "Columns",
    "ConstraintReward",
    "ConstraintsColumn",
    "ExactAnswer",
    "FunctionReward",
    "JSONSchema",
    "JSONSchemaColumn",
    "Length",
    "Matches",
    "MatchesColumn",
    "Part",
    "Prompt",
    "Reward",
    "RewardFunction",
    "RewardModel",
    "SandboxGold",
    "UnitTests",
    "WeightedSum",
    "load_reward",
]


def __getattr__(name: str) -> Any:
    """Import the reward model, and with it torch, the first time it is asked for."""
    if name != "RewardModel":
        raise AttributeError(f"module 'align.rewards' has no attribute {name!r}")
    from align.rewards.reward_model import RewardModel

    return RewardModel
