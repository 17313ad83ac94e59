"""A small synthetic world with a known gold reward, in which alignment can be measured exactly."""

from align.sandbox.gold import GoldReward, gold_reward
from align.sandbox.write import SandboxConfig, write_sandbox

__all__ = ["GoldReward", "SandboxConfig", "gold_reward", "write_sandbox"]
