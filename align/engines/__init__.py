"""Rollout engines: what samples the responses that a run trains on.

What samples whole batches (rollouts, ``align generate``, ``preferences``, ``compare``) asks an ``Engine`` for it; what
reads tokens one by one as they are sampled uses ``align.generation`` itself.
"""

from align.engines.engine import Asked, Crew, Engine, EngineError, OpenEngine, Sampling, Weights
from align.engines.ours import Ours
from align.engines.vllm import VLLM

__all__ = ["VLLM", "Asked", "Crew", "Engine", "EngineError", "OpenEngine", "Ours", "Sampling", "Weights"]
