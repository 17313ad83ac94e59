"""Callbacks that every run has: health, samples, throughput, cost, the model directory, metrics.csv."""

from align.callbacks.baseline import Baseline
from align.callbacks.cost import Cost
from align.callbacks.health import Health
from align.callbacks.health_checks import Finding, HealthCheck, Reading
from align.callbacks.loggers import RunLog
from align.callbacks.model_directory import ModelDirectory
from align.callbacks.samples import TextSamples
from align.callbacks.throughput import Throughput

__all__ = [
    "Baseline",
    "Cost",
    "Finding",
    "Health",
    "HealthCheck",
    "ModelDirectory",
    "Reading",
    "RunLog",
    "TextSamples",
    "Throughput",
]
