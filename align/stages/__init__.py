"""The LightningModules, one per stage of the pipeline."""

from align.stages.optimization import OptimizerConfig, ScheduleConfig
from align.stages.pretrain import Pretrain
from align.stages.probe import Probe, ProbeConfig
from align.stages.sft import SFT

__all__ = ["SFT", "OptimizerConfig", "Pretrain", "Probe", "ProbeConfig", "ScheduleConfig"]
