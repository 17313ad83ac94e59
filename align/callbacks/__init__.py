"""What watches a run: samples, throughput, the model directory, metrics.csv."""

from align.callbacks.model_directory import ModelDirectory
from align.callbacks.run_log import RunLog
from align.callbacks.samples import TextSamples
from align.callbacks.throughput import Throughput

__all__ = ["ModelDirectory", "RunLog", "TextSamples", "Throughput"]
