"""MFU of this machine at a run's own shapes: steps of networks with one and two blocks, extended to all blocks.

A block's time is the difference between the two, so that embeddings, logits and overhead count once.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from align.adapters.lora import add_adapter
from align.generation.generate import generate
from align.generation.sampling_config import SamplingConfig
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.objectives import next_token_loss
from align.plan.duration import Utilisation
from align.plan.flops import flops_per_token
from align.plan.job import Job, PlannedNetwork
from align.plan.probe import best_seconds
from align.training.memory import recompute_activations
from align.training.optimization import OptimizerConfig, build_optimizer

_POSITIONS = 1024
"""Most tokens of a step that is timed"""

_DECODED = (2, 10)
"""New tokens of two calls, whose difference is that many decoding steps"""


def measure(job: Job, peak: float, *, device: str = "cpu") -> Utilisation:
    """The MFU that this machine reaches, in seconds.

    Args:
        job: the run; its policy's shapes are timed.
        peak: FLOP/s of the device, which the MFU is a share of.
        device: cpu or cuda.
    """
    # New networks draw their weights from the global generator.
    with torch.random.fork_rng(devices=[]):
        return _measured(job, peak, device)


def _measured(job: Job, peak: float, device: str) -> Utilisation:
    policy, rows, tokens = job.policy, *_shape(job)
    wait = torch.cuda.synchronize if device == "cuda" else None
    one, two = (_Shortened(job, blocks, rows, tokens, device) for blocks in (1, 2))
    first, second = (best_seconds(short.step, wait=wait) for short in (one, two))
    seconds = _extended(first, second, policy.config.layers)
    flops = rows * tokens * flops_per_token(policy, tokens).total
    optimizer = best_seconds(two.optimizer.step, wait=wait) / two.trained
    decode = None
    if job.rollout is not None:
        count = -(-job.rollout.episodes // job.strategy.data)
        decode = _extended(one.decode(count, wait), two.decode(count, wait), policy.config.layers)
    words = f"measured here: steps of {rows} x {tokens} tokens of networks with 1 and 2 of its blocks"
    return Utilisation(min(1.0, flops / (seconds * peak)), words, optimizer, decode)


def _shape(job: Job) -> tuple[int, int]:
    """Rows and tokens of the steps that are timed."""
    tokens = min(job.policy.config.context - 1, max(1, round(job.volume.row_tokens)))
    rows = max(1, min(job.rows * job.tokens, _POSITIONS) // tokens)
    return rows, min(tokens, _POSITIONS)


def _extended(first: float, second: float, layers: int) -> float:
    """Seconds of all blocks; a difference lost in noise counts as a tenth of the larger."""
    return first + (layers - 1) * max(second - first, second / 10)


def shortened(config: GPTConfig, blocks: int) -> GPTConfig:
    """A network's configuration with fewer blocks."""

    def kept(chosen: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(block for block in chosen if block < blocks)

    windows = None if config.window_layers is None else kept(config.window_layers)
    return replace(config, layers=blocks, no_rope_layers=kept(config.no_rope_layers), window_layers=windows)


class _Shortened:
    """A network with few blocks, and a batch."""

    def __init__(self, job: Job, blocks: int, rows: int, tokens: int, device: str) -> None:
        policy: PlannedNetwork = job.policy
        config = shortened(policy.config, blocks)
        with torch.device(device):
            self.network = GPT(config)
        if policy.lora is not None:
            add_adapter(self.network, policy.lora)
        recompute_activations(self.network, job.recompute)
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.trained = sum(parameter.numel() for parameter in trained)
        self.optimizer = build_optimizer(trained, OptimizerConfig(lr=1e-6, state_bits=job.state_bits))  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(config.vocab_size, (rows, tokens + 1), generator=generator).to(device)
        self.scalar, self.narrow, self.device = policy.scalar, job.precision.narrow, device
        self.rollout = job.rollout

    def step(self) -> None:
        """A forward and a backward pass."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.narrow):
            hidden = self.network.hidden(self.ids[:, :-1])
            if self.scalar:
                hidden[:, -1].sum().backward()
                return
            mask = torch.ones_like(self.ids, dtype=torch.bool)
            softcap = self.network.softcap
            next_token_loss(hidden, self.network.output_weight, self.ids, mask, softcap=softcap).loss.backward()

    def decode(self, rows: int, wait: Callable[[], None] | None) -> float:
        """Seconds of a decoding step of ``rows`` rows, with a cache that is half full."""
        rollout = self.rollout
        assert rollout is not None
        length = round(rollout.prompt_tokens + rollout.response_tokens / 2)
        length = max(1, min(length, self.network.config.context - _DECODED[1]))
        prompts = [[0] * length] * rows

        def call(new: int) -> float:
            sampling = SamplingConfig(max_new_tokens=new, dtype="bfloat16" if rollout.narrow else None)
            return best_seconds(lambda: generate(self.network, prompts, sampling), seconds=0, wait=wait)

        fewer, more = (call(new) for new in _DECODED)
        return max(1e-6, more - fewer) / (_DECODED[1] - _DECODED[0])
