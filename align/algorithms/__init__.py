"""The LightningModules, one per stage of the pipeline."""

from align.algorithms.distillation import Distill
from align.algorithms.dpo import DPO
from align.algorithms.kto import KTO
from align.algorithms.on_policy_distillation import OnPolicyDistill
from align.algorithms.policy_evaluation import PolicyEvaluation, PolicyEvaluationConfig
from align.algorithms.ppo import PPO
from align.algorithms.ppo_settings import KLConfig, RolloutConfig, ScoringConfig, UpdateConfig, ValueConfig
from align.algorithms.pretrain import Pretrain
from align.algorithms.reward_modeling import Reward
from align.algorithms.sft import SFT

__all__ = [
    "DPO",
    "Distill",
    "KLConfig",
    "KTO",
    "OnPolicyDistill",
    "PPO",
    "Pretrain",
    "PolicyEvaluation",
    "PolicyEvaluationConfig",
    "Reward",
    "RolloutConfig",
    "SFT",
    "ScoringConfig",
    "UpdateConfig",
    "ValueConfig",
]
