"""The settings of PPO and its critic-free kin, in groups that check themselves."""

from dataclasses import dataclass
from typing import Literal

from align.objectives import AdaptiveKL, FixedKL, check_kl_use

Algorithm = Literal["ppo", "grpo", "rloo"]


def _require(name: str, value: object, holds: bool, right: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}: it must be {right}")


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled: at this temperature, over the whole vocabulary.

    Raises:
        ValueError: a setting is impossible.
    """

    episodes: int = 64
    """Responses of an iteration, all ranks together"""
    group_size: int = 1
    """Responses to each prompt; grpo and rloo compare these and need 2 or more"""
    temperature: float = 1.0
    """Divides the logits of the samples, and of old, new and reference log-probs alike"""
    max_new_tokens: int = 128
    """Longest response, tokens"""
    logprob_tolerance: float = 1e-3
    """Largest difference of a token's log-prob between sampler and trainer, nats, up to which the sampler's are used;
    beyond it the trainer computes them again"""

    def __post_init__(self) -> None:
        """Reject impossible settings."""
        _require("rollout.episodes", self.episodes, self.episodes >= 1, "at least 1")
        _require("rollout.group_size", self.group_size, self.group_size >= 1, "at least 1")
        _require("rollout.temperature", self.temperature, self.temperature > 0, "above 0")
        _require("rollout.max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        _require("rollout.logprob_tolerance", self.logprob_tolerance, self.logprob_tolerance >= 0, "at least 0")
        if self.episodes % self.group_size:
            raise ValueError(
                f"rollout.group_size {self.group_size} does not divide rollout.episodes {self.episodes}: "
                f"{self.episodes % self.group_size} responses would be left over"
            )


@dataclass(frozen=True)
class ScoringConfig:
    """From what the reward says of a response to its score.

    Raises:
        ValueError: a setting is impossible.
    """

    normalise: Literal["none", "running"] = "none"
    """none: as the reward gives it (a reward-model directory is normalised by its manifest's mean and std already);
    running: minus the mean and over the standard deviation of all rewards of the run so far"""
    reward_clip: float | None = None
    """Rewards are cut to [-reward_clip, reward_clip], after normalisation; None: not"""
    missing_eos_penalty: float = 1.0
    """Taken off the score of a response that was cut before it ended"""

    def __post_init__(self) -> None:
        """Reject impossible settings."""
        clip = self.reward_clip
        _require("scoring.reward_clip", clip, clip is None or clip > 0, "above 0, or null")
        _require("scoring.missing_eos_penalty", self.missing_eos_penalty, self.missing_eos_penalty >= 0, "at least 0")


@dataclass(frozen=True)
class KLConfig:
    """What holds the policy near the reference.

    Raises:
        ValueError: a setting is impossible.
    """

    kl_coef: float = 0.05
    """Reward per nat of KL; where it is steered, the first value"""
    kl_in: Literal["reward", "loss"] | None = None
    """Where the KL is subtracted; None: in the loss for grpo, in the reward for ppo and rloo"""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """Estimate of a token's KL; None: k1 in the reward, k3 in the loss"""
    kl_target: float | None = None
    """KL to hold, nats per response: kl_coef is steered to it; None: kl_coef stays"""
    kl_horizon: int = 2000
    """Responses over which a steered kl_coef may change by a fifth"""
    stop_kl: float | None = None
    """The run ends when the mean KL of a rollout is above this, nats per response; None: never"""

    def __post_init__(self) -> None:
        """Reject impossible settings."""
        _require("kl.kl_coef", self.kl_coef, self.kl_coef >= 0, "at least 0")
        _require("kl.kl_target", self.kl_target, self.kl_target is None or self.kl_target > 0, "above 0, or null")
        _require("kl.kl_horizon", self.kl_horizon, self.kl_horizon >= 1, "at least 1")
        _require("kl.stop_kl", self.stop_kl, self.stop_kl is None or self.stop_kl > 0, "above 0, or null")

    def place(self, algorithm: Algorithm) -> Literal["reward", "loss"]:
        """Where the KL is subtracted."""
        return self.kl_in or ("loss" if algorithm == "grpo" else "reward")

    def estimator(self, algorithm: Algorithm) -> Literal["k1", "k2", "k3"]:
        """The estimator of a token's KL.

        Raises:
            ValueError: its gradient would be wrong in that place.
        """
        place = self.place(algorithm)
        kind = self.kl_estimator or ("k1" if place == "reward" else "k3")
        check_kl_use(kind, place)
        return kind

    def control(self) -> AdaptiveKL | FixedKL:
        """What holds the coefficient.

        Raises:
            ValueError: it can't be steered from where it starts.
        """
        if self.kl_target is None:
            return FixedKL(self.kl_coef)
        return AdaptiveKL(target=self.kl_target, horizon=self.kl_horizon, initial=self.kl_coef)


@dataclass(frozen=True)
class UpdateConfig:
    """How the policy learns from an iteration's experience.

    Raises:
        ValueError: a setting is impossible.
    """

    epochs: int = 4
    """Passes over an iteration's responses"""
    minibatches: int = 4
    """Optimizer steps of a pass; each sees as many responses (Trainer.accumulate_grad_batches cuts it further)"""
    clip_range: float = 0.2
    """The ratio of new to old probabilities counts within 1 - clip_range and 1 + clip_range"""
    target_kl: float | None = 0.1
    """An iteration ends after the optimizer step whose KL(old || new) was above this, nats per token; None: never"""
    gamma: float = 1.0
    """Discount per token (ppo)"""
    gae_lambda: float = 0.95
    """0 trusts the values, 1 the rewards (ppo)"""
    scale_by_std: bool = True
    """Divide a group's advantages by the standard deviation of its rewards (grpo)"""

    def __post_init__(self) -> None:
        """Reject impossible settings."""
        _require("update.epochs", self.epochs, self.epochs >= 1, "at least 1")
        _require("update.minibatches", self.minibatches, self.minibatches >= 1, "at least 1")
        _require("update.clip_range", self.clip_range, 0 < self.clip_range < 1, "in (0, 1)")
        _require("update.target_kl", self.target_kl, self.target_kl is None or self.target_kl > 0, "above 0, or null")
        _require("update.gamma", self.gamma, 0 <= self.gamma <= 1, "in [0, 1]")
        _require("update.gae_lambda", self.gae_lambda, 0 <= self.gae_lambda <= 1, "in [0, 1]")


@dataclass(frozen=True)
class ValueConfig:
    """The value model (ppo only).

    Raises:
        ValueError: a setting is impossible.
    """

    shared_trunk: bool = False
    """A head on the policy's own trunk: half the work and memory, but value and policy pull at one trunk"""
    init_from: str | None = None
    """Model directory the value model starts from; None: the reward model where the reward is a directory, else the
    policy"""
    lr_factor: float = 1.0
    """Learning rate of the value model (of its head, with a shared trunk), as a factor of the policy's"""
    value_coef: float = 0.1
    """Weight of the value loss"""
    value_clip_range: float = 0.2
    """How far a value may move in an iteration, in units of reward"""
    warmup_iterations: int = 0
    """First iterations, in which only the value model learns"""

    def __post_init__(self) -> None:
        """Reject impossible settings."""
        _require("value.lr_factor", self.lr_factor, self.lr_factor > 0, "above 0")
        _require("value.value_coef", self.value_coef, self.value_coef > 0, "above 0")
        _require("value.value_clip_range", self.value_clip_range, self.value_clip_range > 0, "above 0")
        _require("value.warmup_iterations", self.warmup_iterations, self.warmup_iterations >= 0, "at least 0")
        if self.shared_trunk and self.init_from is not None:
            raise ValueError("value.init_from and value.shared_trunk are both set: a shared trunk starts as the policy")
