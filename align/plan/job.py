"""What a training run computes and with what, as plain values: the input of every estimate."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from align.adapters.lora import LoraConfig
from align.model.config import GPTConfig
from align.model.layers import Recompute
from align.plan.parameters import Weight, adapter_weights, weights_of
from align.plan.precision import PRECISIONS, Precision
from align.plan.strategy import Strategy


@dataclass(frozen=True)
class PlannedNetwork:
    """A network of a stage."""

    role: str
    """policy, value, reference, teacher, reward or gold"""
    config: GPTConfig
    trained: bool = False
    """Whether it is trained"""
    scalar: bool = False
    """Whether it has a scalar head instead of an output matrix"""
    head_only: bool = False
    """Whether it is a head on the policy's trunk"""
    lora: LoraConfig | None = None
    """Of its adapter; None: it has none"""
    shares_base: bool = False
    """Whether its weights, but for adapter and head, are the policy's"""

    def base(self) -> list[Weight]:
        """Weights of its own, adapters excluded."""
        if self.head_only:
            return [Weight("head", "score", -1, self.config.width, True)]
        if self.shares_base and not self.scalar:
            return []
        weights = list(weights_of(self.config, scalar=self.scalar))
        return [weight for weight in weights if weight.part == "head"] if self.shares_base else weights

    def adapter(self) -> list[Weight]:
        """Weights of its adapter."""
        return [] if self.lora is None else list(adapter_weights(self.config, self.lora))

    def trained_weights(self) -> list[Weight]:
        """What the optimizer updates."""
        if not self.trained:
            return []
        if self.lora is None:
            return self.base()
        return [*(weight for weight in self.base() if weight.part == "head"), *self.adapter()]

    def frozen_weights(self) -> list[Weight]:
        """The others."""
        if not self.trained:
            return [*self.base(), *self.adapter()]
        return [] if self.lora is None else [weight for weight in self.base() if weight.part != "head"]


@dataclass(frozen=True)
class Rollout:
    """How a stage samples what it learns from."""

    episodes: int
    """Responses of an iteration, over all ranks"""
    group_size: int
    """Responses to each prompt"""
    prompt_tokens: float
    """Mean tokens of a prompt"""
    longest_prompt: int
    """Tokens"""
    response_tokens: float
    """Mean tokens of a response"""
    max_new_tokens: int
    """Longest response, tokens"""
    passes: int
    """Passes of the update over the responses"""
    steps: int
    """Optimizer steps of an iteration"""
    readers: tuple[str, ...]
    """What reads every row of a rollout without a backward pass, such as reference log-probs, by role"""
    narrow: bool = False
    """Whether responses are sampled in bfloat16"""
    elsewhere: bool = False
    """Whether another program samples them, with weights and cache of its own"""

    def row_positions(self, *, micro_batches: int) -> int:
        """Positions per response of an update's largest micro-batch: packed, a group's prompt computed once.

        Args:
            micro_batches: of an optimizer step; rows of similar length share one, so the longest prompts meet.
        """
        prompt = self.prompt_tokens if micro_batches == 1 else self.longest_prompt
        return ceil(prompt / self.group_size + self.response_tokens)


@dataclass(frozen=True)
class Volume:
    """How much a run computes, over all ranks."""

    steps: int | None
    """Optimizer steps; None: unknown"""
    trained: float | None
    """Tokens of forward and backward passes, padding included; None: unknown"""
    row_tokens: float
    """Mean tokens of a row, which attention depends on"""
    sampled: float = 0.0
    """Tokens sampled for training"""
    read: Mapping[str, float] = field(default_factory=dict)
    """Tokens read without a backward pass, by role"""
    iterations: int | None = None
    """Rollouts"""
    assumed: tuple[str, ...] = ()
    """What was assumed because the data could not be read"""


@dataclass(frozen=True)
class Job:
    """A run."""

    stage: str
    """Class name, such as SFT"""
    networks: tuple[PlannedNetwork, ...]
    """Of the stage; the policy first"""
    rows: int
    """Of a micro-batch on one data-parallel rank"""
    tokens: int
    """Of its longest row, padding included"""
    volume: Volume
    precision: Precision = PRECISIONS["32-true"]
    strategy: Strategy = Strategy()
    recompute: Recompute = "none"
    """memory.activation_checkpointing"""
    state_bits: int = 32
    """optimizer.state_bits"""
    muon: bool = False
    """Whether Muon updates the matrices of blocks, with one running mean instead of two"""
    frozen_bytes: int = 4
    """Bytes per weight of networks that are never trained"""
    base_bytes: int = 4
    """Bytes per weight below adapters"""
    accumulate: int = 1
    """Micro-batches of an optimizer step"""
    accelerator: str = "cpu"
    """cpu, cuda or mps"""
    rollout: Rollout | None = None
    """None: the stage samples nothing to learn from"""

    @property
    def policy(self) -> PlannedNetwork:
        """The network that the model directory will hold."""
        return self.networks[0]

    @property
    def trained(self) -> list[PlannedNetwork]:
        """The networks with a backward pass."""
        return [network for network in self.networks if network.trained]

    @property
    def global_rows(self) -> int:
        """Rows of an optimizer step, over all ranks."""
        return self.rows * self.accumulate * self.strategy.data
