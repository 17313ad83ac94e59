"""What watches a run: checkpoints, health, samples, throughput, the model directory, metrics.csv."""

from align.callbacks.cost import Cost
from align.callbacks.health import Health, HealthConfig
from align.callbacks.loggers import RunLog
from align.callbacks.model_directory import ModelDirectory
from align.callbacks.samples import TextSamples
from align.callbacks.throughput import Throughput
from align.training.checkpointing import Checkpoints
from align.training.weight_average import WeightAverage

__all__ = [
    "Checkpoints",
    "Cost",
    "Health",
    "HealthConfig",
    "ModelDirectory",
    "RunLog",
    "TextSamples",
    "Throughput",
    "WeightAverage",
]
