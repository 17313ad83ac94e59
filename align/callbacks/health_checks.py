"""Health checks: which values among a run's logged metrics deserve a warning.

Each check is a frozen dataclass with its own thresholds and one pure method, ``find``, which turns the
readings so far into a finding. A reading is a newly logged value with its optimizer step; thresholds count readings
unless they say steps.
"""

import bisect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

_SAMPLED_FROM = ("rollout", "policy")


class Reading(NamedTuple):
    """A logged value.

    Attributes:
        step: optimizer steps taken when it was logged.
        value: finite.
    """

    step: int
    value: float


History = Mapping[str, Sequence[Reading]]
"""Metric -> its readings, oldest first. Of a long run the middle is missing, never the first or the latest readings."""


class Finding(NamedTuple):
    """Why a check warns.

    Attributes:
        value: the offending number.
        threshold: the number it should have stayed above or below.
        message: one line with the value, the threshold, and what to change.
    """

    value: float
    threshold: float
    message: str


class HealthCheck(ABC):
    """A rule about logged metrics. Subclass it as a frozen dataclass whose fields are thresholds.

    Attributes:
        metrics: the metrics that it reads, by the names they are logged under: ``train/...``, ``rollout/...``,
            ``val/...`` or ``policy/...``.
    """

    metrics: ClassVar[tuple[str, ...]]

    @abstractmethod
    def find(self, metric: str, history: History) -> Finding | None:
        """Judge the newest reading of a metric.

        Args:
            metric: one of ``metrics``, which has a new reading.
            history: readings of every watched metric; ``history[metric]`` has at least one. Others may be missing.

        Returns:
            Finding | None: None if nothing is wrong, or too little has been read to tell.
        """


def require(check: HealthCheck, holds: bool, name: str, right: str) -> None:
    """Reject an invalid threshold.

    Args:
        check: that has it.
        holds: whether it is possible.
        name: of the field.
        right: what it must be.

    Raises:
        ValueError: it does not hold.
    """
    if not holds:
        raise ValueError(f"{type(check).__name__}.{name} is {getattr(check, name)}: it must be {right}")


@dataclass(frozen=True)
class KLRunaway(HealthCheck):
    """The policy is too far from its reference, or moves away from it faster and faster.

    Raises:
        ValueError: a threshold is invalid.
    """

    metrics = tuple(f"{source}/kl" for source in _SAMPLED_FROM)

    budget: float = 20.0
    """Highest KL to the reference, nats per response"""
    growth: float = 4.0
    """Highest factor by which the KL may grow within window readings, once it is above half of the budget"""
    window: int = 5
    """Readings over which growth is measured"""

    def __post_init__(self) -> None:
        """Reject invalid thresholds."""
        require(self, self.budget > 0, "budget", "above 0")
        require(self, self.growth > 1, "growth", "above 1")
        require(self, self.window >= 1, "window", "at least 1")

    def find(self, metric: str, history: History) -> Finding | None:
        """See ``HealthCheck``."""
        advice = "raise the KL's weight (kl_coef, beta), lower optimizer.lr, or use an earlier checkpoint"
        values = _latest(history[metric], self.window + 1)
        value, allowed = values[-1], self.growth * max(values[0], 0)
        if value > self.budget:
            message = f"KL runaway: {metric} is {value:.3g} nats per response, above the budget of {self.budget:g}"
            return Finding(value, self.budget, f"{message}: {advice}")
        if len(values) > self.window and value > self.budget / 2 and value > allowed:
            message = (
                f"KL runaway: {metric} grew from {values[0]:.3g} to {value:.3g} nats within {self.window} readings"
            )
            return Finding(value, allowed, f"{message}, more than {self.growth:g}-fold: {advice}")
        return None


@dataclass(frozen=True)
class KLJump(HealthCheck):
    """The KL rises too fast for the optimizer steps taken: usually a learning rate that is too high.

    The policy starts as its reference, so that before the first reading the KL counts as 0 at step 0.

    Raises:
        ValueError: a threshold is invalid.
    """

    metrics = tuple(f"{source}/kl" for source in _SAMPLED_FROM)

    per_step: float = 0.2
    """Fastest rise between two readings, nats per response per optimizer step"""
    least: float = 2.0
    """Smallest rise that warns, nats per response; below it sampling noise could be the reason"""

    def __post_init__(self) -> None:
        """Reject invalid thresholds."""
        require(self, self.per_step > 0, "per_step", "above 0")
        require(self, self.least >= 0, "least", "at least 0")

    def find(self, metric: str, history: History) -> Finding | None:
        """See ``HealthCheck``."""
        before, now = [Reading(0, 0.0), *history[metric][-2:]][-2:]
        rise, steps = now.value - before.value, now.step - before.step
        allowed = max(self.per_step * steps, self.least)
        if steps < 1 or rise <= allowed:
            return None
        return Finding(
            now.value,
            before.value + allowed,
            f"KL jump: {metric} rose from {before.value:.3g} to {now.value:.3g} nats per response within {steps} "
            f"optimizer steps, more than {allowed:.3g}: lower optimizer.lr (by 3 to 10 times), lengthen "
            "schedule.warmup_steps, or raise the KL's weight (kl_coef, beta)",
        )


@dataclass(frozen=True)
class BlindCritic(HealthCheck):
    """The value model predicts returns worse than a constant would.

    Raises:
        ValueError: a threshold is invalid.
    """

    metrics = ("rollout/explained_variance",)

    patience: int = 5
    """Consecutive rollouts whose explained variance may be below 0"""

    def __post_init__(self) -> None:
        """Reject invalid thresholds."""
        require(self, self.patience >= 1, "patience", "at least 1")

    def find(self, metric: str, history: History) -> Finding | None:
        """See ``HealthCheck``."""
        values = _latest(history[metric], self.patience)
        if len(values) < self.patience or max(values) >= 0:
            return None
        message = (
            f"blind critic: {metric} is {values[-1]:.3g}, below 0 in {self.patience} consecutive rollouts, so the "
            "value model predicts worse than a constant: warm it up longer, raise its learning rate, or use GRPO"
        )
        return Finding(values[-1], 0.0, message)


@dataclass(frozen=True)
class EntropyCollapse(HealthCheck):
    """The policy samples nearly the same tokens every time.

    Raises:
        ValueError: a threshold is invalid.
    """

    metrics = ("rollout/entropy",)

    share: float = 0.3
    """Lowest share of the first rollout's entropy, in [0, 1]"""

    def __post_init__(self) -> None:
        """Reject invalid thresholds."""
        require(self, 0 <= self.share <= 1, "share", "in [0, 1]")

    def find(self, metric: str, history: History) -> Finding | None:
        """See ``HealthCheck``."""
        value, floor = history[metric][-1].value, self.share * history[metric][0].value
        if value >= floor:
            return None
        message = (
            f"entropy collapse: {metric} is {value:.3g}, below {floor:.3g}, {self.share:.0%} of the first: raise "
            "kl_coef, lower optimizer.lr, or use an earlier checkpoint"
        )
        return Finding(value, floor, message)


@dataclass(frozen=True)
class EqualGroups(HealthCheck):
    """Too many groups of responses have equal rewards, which give no gradient.

    Raises:
        ValueError: a threshold is invalid.
    """

    metrics = ("rollout/equal_groups",)

    share: float = 0.5
    """Highest share of groups whose rewards are all equal, in [0, 1]"""

    def __post_init__(self) -> None:
        """Reject invalid thresholds."""
        require(self, 0 <= self.share <= 1, "share", "in [0, 1]")

    def find(self, metric: str, history: History) -> Finding | None:
        """See ``HealthCheck``."""
        value = history[metric][-1].value
        if value <= self.share:
            return None
        message = (
            f"equal groups: {value:.0%} of the groups have equal rewards, above {self.share:.0%}, and give no "
            "gradient: use larger groups, a higher temperature, other prompts or a finer reward"
        )
        return Finding(value, self.share, message)


@dataclass(frozen=True)
class SamplerGap(HealthCheck):
    """Responses come from another distribution than that of the policy that trains on them.

    Raises:
        ValueError: a threshold is invalid.
    """

    metrics = ("rollout/logprob_gap_mean",)

    nats: float = 0.1
    """Largest mean difference between sampler's and trainer's log-prob of a token, nats"""

    def __post_init__(self) -> None:
        """Reject invalid thresholds."""
        require(self, self.nats > 0, "nats", "above 0")

    def find(self, metric: str, history: History) -> Finding | None:
        """See ``HealthCheck``."""
        value = history[metric][-1].value
        if value <= self.nats:
            return None
        message = (
            f"sampler gap: sampler and trainer differ by {value:.3g} nats per token on average, above {self.nats:g}: "
            "sample in the trainer's precision, set rollout.ahead to 0, or lower optimizer.lr"
        )
        return Finding(value, self.nats, message)


@dataclass(frozen=True)
class LogprobsFalling(HealthCheck):
    """Chosen and rejected responses both become unlikely: the preference loss only pushes down.

    Raises:
        ValueError: a threshold is invalid.
    """

    metrics = ("train/logprob_chosen", "train/logprob_rejected")

    drop: float = 20.0
    """How far both may fall below their start, nats per response"""
    window: int = 5
    """Readings that are averaged, the first and the latest"""

    def __post_init__(self) -> None:
        """Reject invalid thresholds."""
        require(self, self.drop > 0, "drop", "above 0")
        require(self, self.window >= 1, "window", "at least 1")

    def find(self, metric: str, history: History) -> Finding | None:
        """See ``HealthCheck``; one finding for both metrics, reported under that of the chosen responses."""
        chosen, rejected = self.metrics
        if metric != chosen or rejected not in history:
            return None
        starts = [_mean([reading.value for reading in history[name][: self.window]]) for name in self.metrics]
        drops = [
            start - _mean(_latest(history[name], self.window)) for name, start in zip(self.metrics, starts, strict=True)
        ]
        if min(drops) <= self.drop:
            return None
        message = (
            f"log-probs falling: {chosen} is {drops[0]:.3g} and {rejected} {drops[1]:.3g} nats below the start, more "
            f"than {self.drop:g}: raise beta, add sft_coef, or lower optimizer.lr"
        )
        return Finding(drops[0], self.drop, message)


@dataclass(frozen=True)
class MarginRunaway(HealthCheck):
    """The preferred responses win by more than any noisy label justifies: the loss is saturated.

    A margin of 10 is a predicted probability of 0.99995. Where it comes within a few steps, the learning rate is far
    too high and the policy's text usually garbled, which this check sees without any samples.

    Raises:
        ValueError: a threshold is invalid.
    """

    metrics = ("train/margin", "val/margin")

    budget: float = 10.0
    """Highest mean margin: log-odds, which are beta times the log-ratios in DPO, and scores of a reward model"""

    def __post_init__(self) -> None:
        """Reject invalid thresholds."""
        require(self, self.budget > 0, "budget", "above 0")

    def find(self, metric: str, history: History) -> Finding | None:
        """See ``HealthCheck``."""
        value = history[metric][-1].value
        if value <= self.budget:
            return None
        message = (
            f"margin runaway: {metric} is {value:.3g}, above {self.budget:g}, so that the loss is saturated: lower "
            "optimizer.lr (by 3 to 10 times), train for fewer steps, or add label_smoothing"
        )
        return Finding(value, self.budget, message)


@dataclass(frozen=True)
class LengthDrift(HealthCheck):
    """Responses become much longer or shorter than at the start.

    Raises:
        ValueError: a threshold is invalid.
    """

    metrics = tuple(f"{source}/length" for source in _SAMPLED_FROM)

    factor: float = 2.0
    """Highest ratio of the first mean length to a later one, either way"""

    def __post_init__(self) -> None:
        """Reject invalid thresholds."""
        require(self, self.factor > 1, "factor", "above 1")

    def find(self, metric: str, history: History) -> Finding | None:
        """See ``HealthCheck``."""
        first, value = history[metric][0].value, history[metric][-1].value
        if value > self.factor * first:
            limit, side = self.factor * first, "above"
            advice = "penalise length, normalise the loss by length, or raise kl_coef"
        elif value < first / self.factor:
            limit, side, advice = first / self.factor, "below", "read the samples, and raise kl_coef or beta"
        else:
            return None
        message = f"length drift: {metric} is {value:.3g} tokens, {side} {limit:.3g}, first {first:.3g}: {advice}"
        return Finding(value, limit, message)


@dataclass(frozen=True)
class EOSFalling(HealthCheck):
    """Fewer responses end with a stop token than at the start.

    Raises:
        ValueError: a threshold is invalid.
    """

    metrics = tuple(f"{source}/eos_rate" for source in _SAMPLED_FROM)

    drop: float = 0.2
    """How far the share of finished responses may fall below the first, in [0, 1]"""

    def __post_init__(self) -> None:
        """Reject invalid thresholds."""
        require(self, 0 <= self.drop <= 1, "drop", "in [0, 1]")

    def find(self, metric: str, history: History) -> Finding | None:
        """See ``HealthCheck``."""
        first, value = history[metric][0].value, history[metric][-1].value
        limit = first - self.drop
        if value >= limit:
            return None
        message = (
            f"EOS rate falling: {metric} is {value:.0%}, below {limit:.0%}, first {first:.0%}: penalise a missing "
            "EOS, raise max_new_tokens, or check that the responses in the data end with one"
        )
        return Finding(value, limit, message)


@dataclass(frozen=True)
class RewardHacking(HealthCheck):
    """The reward that is trained on rises while a reward that is only logged falls.

    Both are judged by their correlation with time, which has no unit. Two series without a trend exceed the default
    in both directions in about one window of 1,400.

    Raises:
        ValueError: a threshold is invalid.
    """

    metrics = ("rollout/gold", "policy/reward", "rollout/reward")

    trend: float = 0.7
    """Correlation with time above which the trained reward counts as rising, and below whose negative the other counts
    as falling, in (0, 1)"""
    window: int = 8
    """Readings that the correlations are taken over"""

    def __post_init__(self) -> None:
        """Reject invalid thresholds."""
        require(self, 0 < self.trend < 1, "trend", "in (0, 1)")
        require(self, self.window >= 3, "window", "at least 3")

    def find(self, metric: str, history: History) -> Finding | None:
        """See ``HealthCheck``; a reading of the logged reward is paired with the trained one's latest at its step."""
        proxy = "rollout/reward"
        if metric == proxy or proxy not in history:
            return None
        steps = [reading.step for reading in history[proxy]]
        pairs = []
        for gold in history[metric][-self.window :]:
            if latest := bisect.bisect_right(steps, gold.step):
                pairs.append((history[proxy][latest - 1].value, gold.value))
        if len(pairs) < self.window:
            return None
        rewards, golds = zip(*pairs, strict=True)
        rise, fall = _trend(rewards), _trend(golds)
        if rise <= self.trend or fall >= -self.trend:
            return None
        message = (
            f"reward hacking: over {len(pairs)} readings {proxy} rises ({rewards[0]:.3g} to {rewards[-1]:.3g}) while "
            f"{metric} falls ({golds[0]:.3g} to {golds[-1]:.3g}), trend {fall:.2f} below {-self.trend:.2f}: stop, use "
            f"the checkpoint at which {metric} was highest, raise kl_coef, or train the reward model on samples of "
            "this policy"
        )
        return Finding(fall, -self.trend, message)


DEFAULT_CHECKS: tuple[type[HealthCheck], ...] = (
    KLRunaway,
    KLJump,
    BlindCritic,
    EntropyCollapse,
    EqualGroups,
    SamplerGap,
    LogprobsFalling,
    MarginRunaway,
    LengthDrift,
    EOSFalling,
    RewardHacking,
)
"""What a run checks unless its recipe says otherwise, each with its default thresholds"""


def _latest(readings: Sequence[Reading], count: int) -> list[float]:
    """The newest values, fewer at the beginning."""
    return [reading.value for reading in readings[-count:]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _trend(values: Sequence[float]) -> float:
    """Pearson correlation with time; 0 of a constant."""
    times = [number - (len(values) - 1) / 2 for number in range(len(values))]
    mean = _mean(values)
    centred = [value - mean for value in values]
    spread = math.sqrt(math.fsum(t * t for t in times) * math.fsum(v * v for v in centred))
    return math.fsum(t * v for t, v in zip(times, centred, strict=True)) / spread if spread else 0.0
