"""align: from raw text to an aligned, compared and exported GPT, on Lightning.

The public names are imported on first use, so that ``import align`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Baseline": "align.callbacks",
    "ChatData": "align.data",
    "Checkpoints": "align.training",
    "Cost": "align.callbacks",
    "Distill": "align.algorithms",
    "DPO": "align.algorithms",
    "FeedbackData": "align.data",
    "FourBit": "align.training",
    "generate": "align.generation.generate",
    "GPT": "align.model",
    "GPTConfig": "align.model",
    "Health": "align.callbacks",
    "HealthCheck": "align.callbacks",
    "KLConfig": "align.algorithms",
    "KTO": "align.algorithms",
    "load_network": "align.io.directory",
    "load_reward": "align.rewards",
    "load_scalar": "align.io.directory",
    "LoraConfig": "align.adapters.lora",
    "ModelDirectory": "align.callbacks",
    "ModelParallel": "align.training",
    "OptimizerConfig": "align.training",
    "OnPolicyDistill": "align.algorithms",
    "PolicyEvaluationConfig": "align.algorithms",
    "PPO": "align.algorithms",
    "PreferenceData": "align.data",
    "Pretrain": "align.algorithms",
    "PromptData": "align.data",
    "Reward": "align.algorithms",
    "RewardModel": "align.rewards",
    "RolloutConfig": "align.algorithms",
    "RunLog": "align.callbacks",
    "SamplingConfig": "align.generation.sampling_config",
    "save_network": "align.io.directory",
    "ScalarGPT": "align.model",
    "ScheduleConfig": "align.training",
    "ScoringConfig": "align.algorithms",
    "SFT": "align.algorithms",
    "TextData": "align.data",
    "TextSamples": "align.callbacks",
    "Throughput": "align.callbacks",
    "Tokenizer": "align.tokenizer",
    "train_tokenizer": "align.tokenizer",
    "UpdateConfig": "align.algorithms",
    "ValueConfig": "align.algorithms",
    "WeightAverage": "align.training",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from align.adapters.lora import LoraConfig as LoraConfig
    from align.algorithms.distillation import Distill as Distill
    from align.algorithms.dpo import DPO as DPO
    from align.algorithms.kto import KTO as KTO
    from align.algorithms.on_policy_distillation import OnPolicyDistill as OnPolicyDistill
    from align.algorithms.policy_evaluation import PolicyEvaluationConfig as PolicyEvaluationConfig
    from align.algorithms.ppo import PPO as PPO
    from align.algorithms.ppo_settings import KLConfig as KLConfig
    from align.algorithms.ppo_settings import RolloutConfig as RolloutConfig
    from align.algorithms.ppo_settings import ScoringConfig as ScoringConfig
    from align.algorithms.ppo_settings import UpdateConfig as UpdateConfig
    from align.algorithms.ppo_settings import ValueConfig as ValueConfig
    from align.algorithms.pretrain import Pretrain as Pretrain
    from align.algorithms.reward_modeling import Reward as Reward
    from align.algorithms.sft import SFT as SFT
    from align.callbacks.baseline import Baseline as Baseline
    from align.callbacks.cost import Cost as Cost
    from align.callbacks.health import Health as Health
    from align.callbacks.health_checks import HealthCheck as HealthCheck
    from align.callbacks.loggers import RunLog as RunLog
    from align.callbacks.model_directory import ModelDirectory as ModelDirectory
    from align.callbacks.samples import TextSamples as TextSamples
    from align.callbacks.throughput import Throughput as Throughput
    from align.data.feedback_data import FeedbackData as FeedbackData
    from align.data.pair_data import PreferenceData as PreferenceData
    from align.data.pair_data import PromptData as PromptData
    from align.data.text_data import ChatData as ChatData
    from align.data.text_data import TextData as TextData
    from align.generation.generate import generate as generate
    from align.generation.sampling_config import SamplingConfig as SamplingConfig
    from align.io.directory import load_network as load_network
    from align.io.directory import load_scalar as load_scalar
    from align.io.directory import save_network as save_network
    from align.model.config import GPTConfig as GPTConfig
    from align.model.gpt import GPT as GPT
    from align.model.gpt import ScalarGPT as ScalarGPT
    from align.rewards.functions import load_reward as load_reward
    from align.rewards.reward_model import RewardModel as RewardModel
    from align.tokenizer import Tokenizer as Tokenizer
    from align.tokenizer import train_tokenizer as train_tokenizer
    from align.training.checkpointing import Checkpoints as Checkpoints
    from align.training.optimization import OptimizerConfig as OptimizerConfig
    from align.training.optimization import ScheduleConfig as ScheduleConfig
    from align.training.qlora import FourBit as FourBit
    from align.training.strategy import ModelParallel as ModelParallel
    from align.training.weight_average import WeightAverage as WeightAverage
else:

    def __getattr__(name: str) -> Any:
        """Import a public name from its home the first time it is asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module 'align' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
