"""The settings of ``PPO``, in groups that check themselves."""

from dataclasses import dataclass
from typing import Literal

from align.engines import Engine, Ours
from align.objectives import (
    DEFAULT_KL_ESTIMATORS,
    AdaptiveKL,
    Average,
    FixedKL,
    KLEstimator,
    KLUse,
    Surrogate,
    TokenClip,
    check_kl_use,
)


def _require(name: str, value: object, holds: bool, right: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}: it must be {right}")


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled: over the whole vocabulary, without top-k or top-p.

    Raises:
        ValueError: a setting is invalid.
    """

    episodes: int = 64
    """Responses per iteration, over all ranks"""
    group_size: int = 1
    """Responses to each prompt; an estimator that compares them needs at least 2"""
    engine: Engine = Ours()  # noqa: RUF009 (frozen)
    """What samples: Ours, in the trainer's process, or VLLM"""
    ahead: int = 0
    """1: sample the responses of an iteration while the one before updates the policy, with the weights from before
    that update; the trainer recomputes old log-probs and weights by importance_cap. 0: sample with the current weights
    """
    refills: int = 0
    """Dynamic sampling: at most this many further draws of prompts per iteration, to replace groups of equal scores; if
    there are still too few others, some of those groups stay"""
    temperature: float = 1.0
    """Divides the logits when sampling and in the old, new and reference log-probs"""
    max_new_tokens: int = 128
    """Longest response, tokens"""
    logprob_tolerance: float = 1e-3
    """Use the sampler's log-probs as the old ones if they differ from the trainer's by at most this, nats per token;
    otherwise the trainer recomputes them"""
    dtype: Literal["bfloat16"] | None = None
    """Precision of sampling. bfloat16: faster on CPUs with bfloat16 instructions. None: that of the update"""
    importance_cap: float | None = 2.0
    """Where the trainer recomputes old log-probs (always with VLLM, bfloat16 or ahead; otherwise see
    logprob_tolerance), weight the policy loss of each token by its probability under the
    trainer over that under the sampler, at most this; None: no weights"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        _require("rollout.episodes", self.episodes, self.episodes >= 1, "at least 1")
        _require("rollout.group_size", self.group_size, self.group_size >= 1, "at least 1")
        _require("rollout.refills", self.refills, self.refills >= 0, "at least 0")
        _require("rollout.ahead", self.ahead, self.ahead in (0, 1), "0 or 1")
        if self.ahead and self.refills:
            raise ValueError(
                f"rollout.ahead is 1 and rollout.refills is {self.refills}: how many prompts an iteration draws is not "
                "known before they are scored; set one of them to 0"
            )
        if self.refills and self.group_size == 1:
            raise ValueError(
                f"rollout.refills is {self.refills}, but rollout.group_size is 1: there is no group whose scores could "
                "be equal; set group_size to at least 2"
            )
        _require("rollout.temperature", self.temperature, self.temperature > 0, "above 0")
        _require("rollout.max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        _require("rollout.logprob_tolerance", self.logprob_tolerance, self.logprob_tolerance >= 0, "at least 0")
        _require("rollout.dtype", self.dtype, self.dtype in (None, "bfloat16"), "bfloat16, or null")
        cap = self.importance_cap
        _require("rollout.importance_cap", cap, cap is None or cap >= 1, "at least 1, or null")
        if self.episodes % self.group_size:
            raise ValueError(
                f"rollout.group_size {self.group_size} does not divide rollout.episodes {self.episodes}: "
                f"{self.episodes % self.group_size} responses would be left over"
            )

    @property
    def recomputes(self) -> bool:
        """Whether the trainer recomputes old log-probs in any case.

        The sampler's are then those of another precision, program or policy, which agree with its own by chance.
        """
        return self.dtype is not None or bool(self.ahead) or not self.engine.exact


@dataclass(frozen=True)
class ScoringConfig:
    """How a reward becomes a score.

    Raises:
        ValueError: a setting is invalid.
    """

    normalise: Literal["none", "running"] = "none"
    """none: use the reward as it is (a reward-model directory is already normalised by its manifest's mean and std);
    running: subtract the mean and divide by the standard deviation of all rewards of the run so far"""
    reward_clip: float | None = None
    """Clip rewards to [-reward_clip, reward_clip] after normalisation; None: do not clip"""
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of a response that reached max_new_tokens before its end"""
    overlong_tokens: int = 0
    """Soft limit: a response within this many tokens of max_new_tokens loses a share of overlong_penalty that rises
    linearly to all of it; 0: none does"""
    overlong_penalty: float = 1.0
    """Subtracted from the score of a response of max_new_tokens, in units of reward"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        clip = self.reward_clip
        _require("scoring.reward_clip", clip, clip is None or clip > 0, "above 0, or null")
        _require("scoring.missing_eos_penalty", self.missing_eos_penalty, self.missing_eos_penalty >= 0, "at least 0")
        _require("scoring.overlong_tokens", self.overlong_tokens, self.overlong_tokens >= 0, "at least 0")
        _require("scoring.overlong_penalty", self.overlong_penalty, self.overlong_penalty >= 0, "at least 0")


@dataclass(frozen=True)
class KLConfig:
    """What keeps the policy near the reference.

    Raises:
        ValueError: a setting is invalid.
    """

    kl_coef: float = 0.05
    """Reward per nat of KL; with kl_target, the initial value. At 0 and without stop_kl, only policy evaluation
    measures the KL"""
    kl_in: KLUse | None = None
    """Whether the KL is subtracted from the reward or added to the loss; None: what the estimator defaults to"""
    estimator: KLEstimator | None = None
    """Estimator of a token's KL; None: K1 in the reward, K3 in the loss"""
    kl_target: float | None = None
    """KL that an adaptive kl_coef aims for, nats per response; None: kl_coef is fixed"""
    kl_horizon: int = 2000
    """Responses over which an adaptive kl_coef changes by at most about a fifth"""
    stop_kl: float | None = None
    """End the run when the mean KL of a rollout exceeds this, nats per response; None: never"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        _require("kl.kl_coef", self.kl_coef, self.kl_coef >= 0, "at least 0")
        _require("kl.kl_target", self.kl_target, self.kl_target is None or self.kl_target > 0, "above 0, or null")
        _require("kl.kl_horizon", self.kl_horizon, self.kl_horizon >= 1, "at least 1")
        _require("kl.stop_kl", self.stop_kl, self.stop_kl is None or self.stop_kl > 0, "above 0, or null")

    @property
    def needs_reference(self) -> bool:
        """Whether an iteration depends on the KL of its rollout."""
        return self.kl_coef > 0 or self.stop_kl is not None

    def estimators(self, default_use: KLUse) -> dict[KLUse, KLEstimator]:
        """The one use of the KL, with its estimator.

        Args:
            default_use: of the advantage estimator.

        Raises:
            ValueError: the estimator's gradient is wrong there.
        """
        use = self.kl_in or default_use
        estimator = self.estimator or DEFAULT_KL_ESTIMATORS[use]
        check_kl_use(estimator, use)
        return {use: estimator}

    def controller(self) -> AdaptiveKL | FixedKL:
        """A controller of the coefficient, in its initial state.

        Raises:
            ValueError: an adaptive coefficient cannot start at 0.
        """
        if self.kl_target is None:
            return FixedKL(self.kl_coef)
        return AdaptiveKL(target=self.kl_target, horizon=self.kl_horizon, initial=self.kl_coef)


@dataclass(frozen=True)
class UpdateConfig:
    """How the policy learns from a rollout.

    Raises:
        ValueError: a setting is invalid.
    """

    epochs: int = 2
    """Passes over the rollout"""
    minibatches: int = 4
    """Optimizer steps per pass; trainer.accumulate_grad_batches splits each into micro-batches"""
    surrogate: Surrogate = TokenClip()  # noqa: RUF009 (frozen)
    """Objective of the policy: TokenClip, SequenceClip, or the class path of your own"""
    average: Average | None = None
    """Over tokens: TokenMean, ResponseMean or ConstantLength; None: that of the surrogate if it has one, else of the
    estimator"""
    target_kl: float | None = 0.1
    """End an iteration after the optimizer step whose KL(old || new) exceeds this, nats per token; None: never"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        _require("update.epochs", self.epochs, self.epochs >= 1, "at least 1")
        _require("update.minibatches", self.minibatches, self.minibatches >= 1, "at least 1")
        _require("update.target_kl", self.target_kl, self.target_kl is None or self.target_kl > 0, "above 0, or null")


@dataclass(frozen=True)
class ValueConfig:
    """The value model of an estimator that needs one.

    Raises:
        ValueError: a setting is invalid.
    """

    shared_trunk: bool = False
    """Put a head on the policy's trunk: half the compute and memory, but the value loss moves the policy too"""
    init_from: str | None = None
    """Model directory to initialise from; None: the reward model if the reward is a directory, else the policy"""
    lr_factor: float = 1.0
    """Ratio of the value model's learning rate (with a shared trunk, its head's) to the policy's"""
    value_coef: float = 0.1
    """Weight of the value loss"""
    value_clip_range: float = 0.2
    """How far a value may move per iteration, in units of reward"""
    warmup_iterations: int = 0
    """Initial iterations in which only the value model trains"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        _require("value.lr_factor", self.lr_factor, self.lr_factor > 0, "above 0")
        _require("value.value_coef", self.value_coef, self.value_coef > 0, "above 0")
        _require("value.value_clip_range", self.value_clip_range, self.value_clip_range > 0, "above 0")
        _require("value.warmup_iterations", self.warmup_iterations, self.warmup_iterations >= 0, "at least 0")
        if self.shared_trunk and self.init_from is not None:
            raise ValueError("value.init_from and value.shared_trunk are both set: a shared trunk starts as the policy")
