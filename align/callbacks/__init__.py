"""What watches a run: checkpoints, health, samples, throughput, the model directory, metrics.csv."""

from align.callbacks.cost import Cost
from align.callbacks.health import Health, HealthConfig
from align.callbacks.loggers import RunLog
from align.callbacks.model_directory import ModelDirectory
from align.callbacks.samples import TextSamples
from align.callbacks.throughput import Throughput

__all__ = [
    "Cost",
    "Health",
    "HealthConfig",
    "ModelDirectory",
    "RunLog",
    "TextSamples",
    "Throughput",
]
