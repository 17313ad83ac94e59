"""What watches a run: checkpoints, health, samples, throughput, the model directory, metrics.csv."""

from align.callbacks.average import WeightAverage
from align.callbacks.checkpoints import Checkpoints
from align.callbacks.cost import Cost
from align.callbacks.health import Health
from align.callbacks.health_checks import HealthConfig
from align.callbacks.model_directory import ModelDirectory
from align.callbacks.run_log import RunLog
from align.callbacks.samples import TextSamples
from align.callbacks.throughput import Throughput

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
