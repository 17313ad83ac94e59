"""The LightningModules, one per stage of the pipeline."""

from align.stages.dpo import DPO
from align.stages.four_bit import FourBit
from align.stages.optimization import OptimizerConfig, ScheduleConfig
from align.stages.ppo import PPO
from align.stages.ppo_settings import KLConfig, RolloutConfig, ScoringConfig, UpdateConfig, ValueConfig
from align.stages.pretrain import Pretrain
from align.stages.probe import Probe, ProbeConfig
from align.stages.reward import Reward
from align.stages.sft import SFT
from align.stages.strategy import ModelParallel

__all__ = [
    "DPO",
    "FourBit",
    "KLConfig",
    "ModelParallel",
    "OptimizerConfig",
    "PPO",
    "Pretrain",
    "Probe",
    "ProbeConfig",
    "Reward",
    "RolloutConfig",
    "SFT",
    "ScheduleConfig",
    "ScoringConfig",
    "UpdateConfig",
    "ValueConfig",
]
