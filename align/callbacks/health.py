"""What is wrong with an alignment run, told from its logged metrics alone: no Trainer, no tensors.

A reading is a value of a metric that was logged anew; thresholds count readings, not steps.

Says in one line what is wrong with a run, and stops it before anything that is not finite is saved.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch.optim import Optimizer

from align.training.sharding import total_norm
from align.training.trainer_state import validating_in_fit


@dataclass(frozen=True)
class HealthConfig:
    """When a run counts as unwell.

    Raises:
        ValueError: a setting is impossible.
    """

    kl_budget: float = 20.0
    """Highest KL to the reference, nats per response"""
    kl_growth: float = 4.0
    """Highest factor by which the KL may grow within window readings, once it is above half of kl_budget"""
    critic_patience: int = 5
    """Rollouts in a row whose explained variance may be below 0"""
    entropy_share: float = 0.3
    """Lowest share of the first rollout's entropy, in [0, 1]"""
    equal_groups: float = 0.5
    """Highest share of groups whose rewards are all equal, in [0, 1]"""
    logprob_drop: float = 20.0
    """How far the log-probs of both chosen and rejected may fall below their start, nats per response"""
    length_factor: float = 2.0
    """Highest factor between the first response length and a later one, either way"""
    eos_drop: float = 0.2
    """How far the share of responses that end by themselves may fall below the first, in [0, 1]"""
    hacking_trend: float = 0.7
    """Correlation with time over hacking_window readings at which a reward counts as rising, and gold as falling below
    its negative, in (0, 1)"""
    hacking_window: int = 8
    """Readings that the trends of reward and gold are taken over"""
    window: int = 5
    """Readings that are averaged where single ones are noisy, and over which growth is taken"""
    quiet_steps: int = 100
    """Optimizer steps before the same warning is given again"""

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        rules = {
            "kl_budget": (self.kl_budget > 0, "above 0"),
            "kl_growth": (self.kl_growth > 1, "above 1"),
            "critic_patience": (self.critic_patience >= 1, "at least 1"),
            "entropy_share": (0 <= self.entropy_share <= 1, "in [0, 1]"),
            "equal_groups": (0 <= self.equal_groups <= 1, "in [0, 1]"),
            "logprob_drop": (self.logprob_drop > 0, "above 0"),
            "length_factor": (self.length_factor > 1, "above 1"),
            "eos_drop": (0 <= self.eos_drop <= 1, "in [0, 1]"),
            "hacking_trend": (0 < self.hacking_trend < 1, "in (0, 1)"),
            "hacking_window": (self.hacking_window >= 3, "at least 3"),
            "window": (self.window >= 1, "at least 1"),
            "quiet_steps": (self.quiet_steps >= 1, "at least 1"),
        }
        for name, (holds, right) in rules.items():
            if not holds:
                raise ValueError(f"health.settings.{name} is {getattr(self, name)}: it must be {right}")


class Finding(NamedTuple):
    """Something that is wrong.

    Attributes:
        check: which check found it.
        metric: where; the warning is repeated per check and metric.
        value: the number.
        threshold: the number it should have kept to.
        message: one line with both and the cure.
    """

    check: str
    metric: str
    value: float
    threshold: float
    message: str


class Watch:
    """Readings so far, and what they say.

    Args:
        config: the thresholds.
    """

    def __init__(self, config: HealthConfig) -> None:
        """Nothing read yet."""
        self.config = config
        self._first: dict[str, list[float]] = {}
        self._recent: dict[str, list[float]] = {}
        self._paired: dict[str, list[list[float]]] = {}
        self._told: dict[str, int] = {}

    def read(self, step: int, metrics: Mapping[str, float]) -> list[Finding]:
        """Take in fresh values.

        Args:
            step: optimizer steps done.
            metrics: name to value, only of metrics that were logged anew; those that nobody watches are ignored.

        Returns:
            list: what is wrong and was not said within the last ``quiet_steps``.
        """
        fresh = {name: value for name, value in metrics.items() if name in _WATCHED and math.isfinite(value)}
        for name, value in fresh.items():
            start = self._first.setdefault(name, [])
            if len(start) < self.config.window:
                start.append(value)
            recent = self._recent.setdefault(name, [])
            recent.append(value)
            del recent[: -self._longest]
        findings = [finding for check in _CHECKS for finding in check(self, fresh)]
        return [finding for finding in findings if self._new(step, finding)]

    def first(self, name: str) -> float:
        """The first reading."""
        return self._first[name][0]

    def start(self, name: str) -> float:
        """Mean of the first ``window`` readings."""
        return sum(self._first[name]) / len(self._first[name])

    def recent(self, name: str, count: int) -> list[float]:
        """The last readings, fewer at the beginning."""
        return self._recent.get(name, [])[-count:]

    def pair(self, proxy: str, gold: str) -> list[list[float]]:
        """Add the newest reading of both and give the last ``hacking_window`` of such pairs."""
        pairs = self._paired.setdefault(f"{proxy} {gold}", [])
        pairs.append([self._recent[proxy][-1], self._recent[gold][-1]])
        del pairs[: -self.config.hacking_window]
        return pairs

    def state_dict(self) -> dict[str, Any]:
        """Everything read, so that a resumed run goes on."""
        return {"first": self._first, "recent": self._recent, "paired": self._paired, "told": self._told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what an earlier run read."""
        self._first, self._recent = dict(state["first"]), dict(state["recent"])
        self._paired, self._told = dict(state["paired"]), dict(state["told"])

    @property
    def _longest(self) -> int:
        return max(self.config.window + 1, self.config.critic_patience)

    def _new(self, step: int, finding: Finding) -> bool:
        key = f"{finding.check} {finding.metric}"
        if key in self._told and step - self._told[key] < self.config.quiet_steps:
            return False
        self._told[key] = step
        return True


Findings = Iterator[Finding]


def _kl_runaway(watch: Watch, fresh: Mapping[str, float]) -> Findings:
    config = watch.config
    cure = "raise the KL's weight (kl_coef, beta), lower optimizer.lr, or take an earlier checkpoint"
    for name in _both(fresh, "kl"):
        value, readings = fresh[name], watch.recent(name, config.window + 1)
        allowed = config.kl_growth * max(readings[0], 0)
        if value > config.kl_budget:
            told = f"{name} is {value:.3g} nats a response, above kl_budget {config.kl_budget:g}: {cure}"
            yield Finding("kl_runaway", name, value, config.kl_budget, f"KL runaway: {told}")
        elif len(readings) > config.window and value > config.kl_budget / 2 and value > allowed:
            told = f"{name} went from {readings[0]:.3g} to {value:.3g} nats within {config.window} readings, more than"
            message = f"KL runaway: {told} kl_growth {config.kl_growth:g} times: {cure}"
            yield Finding("kl_runaway", name, value, allowed, message)


def _critic_blind(watch: Watch, fresh: Mapping[str, float]) -> Findings:
    name, patience = "rollout/explained_variance", watch.config.critic_patience
    readings = watch.recent(name, patience)
    if name in fresh and len(readings) == patience and max(readings) < 0:
        message = (
            f"critic blind: {name} is {fresh[name]:.3g}, below 0 in {patience} rollouts in a row, so the critic is "
            "worse than a constant: warm it up longer, raise its learning rate, or use rloo or grpo"
        )
        yield Finding("critic_blind", name, fresh[name], 0.0, message)


def _entropy_collapse(watch: Watch, fresh: Mapping[str, float]) -> Findings:
    name = "rollout/entropy"
    if name not in fresh:
        return
    floor = watch.config.entropy_share * watch.first(name)
    if fresh[name] < floor:
        message = (
            f"entropy collapse: {name} is {fresh[name]:.3g}, below {floor:.3g}, {watch.config.entropy_share:.0%} of "
            "the first: raise kl_coef, lower optimizer.lr, or take an earlier checkpoint"
        )
        yield Finding("entropy_collapse", name, fresh[name], floor, message)


def _equal_groups(watch: Watch, fresh: Mapping[str, float]) -> Findings:
    name, limit = "rollout/equal_groups", watch.config.equal_groups
    if name in fresh and fresh[name] > limit:
        message = (
            f"equal groups: {fresh[name]:.0%} of the groups have equal rewards, above {limit:.0%}, and teach nothing: "
            "use larger groups, a higher temperature, other prompts or a finer reward"
        )
        yield Finding("equal_groups", name, fresh[name], limit, message)


def _logprobs_falling(watch: Watch, fresh: Mapping[str, float]) -> Findings:
    chosen, rejected = "train/logprob_chosen", "train/logprob_rejected"
    if chosen not in fresh or rejected not in fresh:
        return
    window, limit = watch.config.window, watch.config.logprob_drop
    drops = [watch.start(name) - _mean(watch.recent(name, window)) for name in (chosen, rejected)]
    if min(drops) > limit:
        message = (
            f"both log-probs fall: {chosen} by {drops[0]:.3g} and {rejected} by {drops[1]:.3g} nats below their start, "
            f"more than {limit:g}: raise beta, add sft_coef, or lower optimizer.lr"
        )
        yield Finding("logprobs_falling", chosen, drops[0], limit, message)


def _length_drift(watch: Watch, fresh: Mapping[str, float]) -> Findings:
    factor = watch.config.length_factor
    for name in _both(fresh, "length"):
        first, value = watch.first(name), fresh[name]
        if value > factor * first:
            limit, side, cure = factor * first, "above", "penalise length, normalise the loss by it, or raise kl_coef"
        elif value < first / factor:
            limit, side, cure = first / factor, "below", "look at the samples, and raise kl_coef or beta"
        else:
            continue
        message = f"length drifts: {name} is {value:.3g} tokens, {side} {limit:.3g}, first {first:.3g}: {cure}"
        yield Finding("length_drift", name, value, limit, message)


def _eos_falling(watch: Watch, fresh: Mapping[str, float]) -> Findings:
    for name in _both(fresh, "eos_rate"):
        limit = watch.first(name) - watch.config.eos_drop
        if fresh[name] < limit:
            message = (
                f"responses do not end: {name} is {fresh[name]:.0%}, below {limit:.0%}, first {watch.first(name):.0%}: "
                "penalise a missing end, raise max_new_tokens, or see that the data's answers end"
            )
            yield Finding("eos_falling", name, fresh[name], limit, message)


def _reward_hacking(watch: Watch, fresh: Mapping[str, float]) -> Findings:
    proxy, limit = "rollout/reward", watch.config.hacking_trend
    for gold in ("rollout/gold", "policy/reward"):
        if gold not in fresh or not watch.recent(proxy, 1):
            continue
        pairs = watch.pair(proxy, gold)
        if len(pairs) < watch.config.hacking_window:
            continue
        rise, fall = (_trend([pair[side] for pair in pairs]) for side in (0, 1))
        if rise > limit and fall < -limit:
            message = (
                f"reward hacking: over {len(pairs)} readings {proxy} rises ({pairs[0][0]:.3g} to {pairs[-1][0]:.3g}) "
                f"while {gold} falls ({pairs[0][1]:.3g} to {pairs[-1][1]:.3g}), trend {fall:.2f} below {-limit:.2f}: "
                "stop here, take the checkpoint where it was highest, raise kl_coef, or train the reward model on "
                "samples of this policy"
            )
            yield Finding("reward_hacking", gold, fall, -limit, message)


_CHECKS: tuple[Callable[[Watch, Mapping[str, float]], Findings], ...] = (
    _kl_runaway,
    _critic_blind,
    _entropy_collapse,
    _equal_groups,
    _logprobs_falling,
    _length_drift,
    _eos_falling,
    _reward_hacking,
)

_WATCHED = frozenset(
    [f"{place}/{name}" for place in ("rollout", "policy") for name in ("kl", "length", "eos_rate", "reward")]
    + [f"rollout/{name}" for name in ("gold", "explained_variance", "entropy", "equal_groups")]
    + ["train/logprob_chosen", "train/logprob_rejected"]
)


def _both(fresh: Mapping[str, float], name: str) -> list[str]:
    """The metric of the rollouts and of the held-out samples, where they are fresh."""
    return [f"{place}/{name}" for place in ("rollout", "policy") if f"{place}/{name}" in fresh]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _trend(values: list[float]) -> float:
    """Pearson correlation with time; 0 of a constant."""
    times = [number - (len(values) - 1) / 2 for number in range(len(values))]
    centred = [value - _mean(values) for value in values]
    spread = math.sqrt(math.fsum(t * t for t in times) * math.fsum(v * v for v in centred))
    return math.fsum(t * v for t, v in zip(times, centred, strict=True)) / spread if spread else 0.0


_MAY_BE_INFINITE = ("/perplexity",)
"""Ends of names: exp(loss) overflows in the first steps of a large vocabulary; the loss itself is looked at."""


class Health(pl.Callback):
    """Watches what a run logs; findings go to the terminal and to ``health.jsonl`` in the run folder.

    Read when it is fresh: ``train/*`` at each logged step, ``rollout/*`` at the end of an iteration (an epoch),
    ``val/*`` and ``policy/*`` after a validation. Checks whose metrics a stage does not log are silent.

    A NaN or an infinity in a metric, a gradient or a weight ends the run: a gradient before it moves a weight, a metric
    and a weight before the checkpoint or the model directory is written, so that those on disk stay finite. On a GPU
    gradients and weights are fetched at logged steps and before each checkpoint only.

    Args:
        settings: thresholds.
    """

    def __init__(self, settings: HealthConfig = HealthConfig()) -> None:  # noqa: B008 (frozen)
        """Nothing read yet."""
        self.watch = Watch(settings)
        self._read_at = -1

    def state_dict(self) -> dict[str, Any]:
        """What was read so far."""
        return self.watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.watch.load_state_dict(state_dict)

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the findings up to the step that the run goes on from; a fresh run begins without any."""
        file = _file(trainer)
        if not file.is_file():
            return
        resumed = trainer.global_step > 0
        kept = [
            line
            for line in file.read_text().splitlines()
            if resumed and json.loads(line)["step"] <= trainer.global_step
        ]
        if kept:
            file.write_text("\n".join(kept) + "\n")
        else:
            file.unlink()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Refuse a gradient that is not finite, before it moves a weight."""
        # fp16's scaler overflows on purpose and skips such steps itself.
        if str(trainer.precision).startswith("16") or not _worth_a_look(trainer, pl_module, trainer.global_step + 1):
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(total_norm(gradients))
        if not math.isfinite(norm):
            cure = "no weight was moved by it; lower optimizer.lr, lengthen schedule.warmup_steps or look at the data"
            self._stop(trainer, "gradient norm", norm, cure)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read ``train/*`` at a logged step."""
        step = trainer.global_step
        if step == self._read_at or step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        self._read_at = step
        self._refuse_weights(trainer, pl_module)
        self._read(trainer, ("train/",))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read ``rollout/*``: an epoch of reinforcement learning is an iteration."""
        self._read(trainer, ("rollout/",))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read ``val/*`` and ``policy/*``."""
        if validating_in_fit(trainer):
            self._refuse_weights(trainer, pl_module)
            self._read(trainer, ("val/", "policy/"))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the weights once more, before the model directory is written."""
        self._refuse_weights(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to replace a checkpoint by one that is not finite."""
        parts = {name: checkpoint[name] for name in ("state_dict", "optimizer_states") if name in checkpoint}
        for name, tensor in _tensors(parts, ""):
            if not _finite(tensor):
                self._stop(trainer, name, math.nan, "the last checkpoint is from before it; lower optimizer.lr")

    def _refuse_weights(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, weight in pl_module.named_parameters():
            if weight.requires_grad and not _finite(weight.detach()):
                cure = "the last checkpoint and model directory are from before it; lower optimizer.lr"
                self._stop(trainer, f"weight {name}", math.nan, cure)

    def _read(self, trainer: pl.Trainer, prefixes: tuple[str, ...]) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefixes)}
        for name, value in metrics.items():
            if not math.isfinite(value) and not name.endswith(_MAY_BE_INFINITE):
                cure = "the last checkpoint is from before it; lower optimizer.lr, or look at the data and the reward"
                self._stop(trainer, name, value, cure)
        for finding in self.watch.read(trainer.global_step, metrics):
            rank_zero_info(f"health: step {trainer.global_step}: {finding.message}")
            _write(trainer, finding)

    def _stop(self, trainer: pl.Trainer, what: str, value: float, cure: str) -> None:
        """End the run.

        Raises:
            FloatingPointError: always.
        """
        message = f"{what} is {'not finite' if math.isnan(value) else value} at optimizer step {trainer.global_step}: "
        _write(trainer, Finding("nonfinite", what, value, math.inf, message + cure))
        raise FloatingPointError(message + cure)


def _worth_a_look(trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> bool:
    """Always on a CPU; on a GPU when its numbers are fetched for the log anyway."""
    return pl_module.device.type == "cpu" or step % max(1, trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested mappings and lists, with where it stands."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _tensors(item, f"{name}.{key}" if name else str(key))


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(_whole(tensor.isfinite().all()))


def _whole(tensor: Any) -> torch.Tensor:
    """The tensor itself, gathered if it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _file(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "health.jsonl"


@rank_zero_only
def _write(trainer: pl.Trainer, finding: Finding) -> None:
    """Append a finding; JSON has no NaN and no infinity, so they are written as text."""
    line = {"step": trainer.global_step, **finding._asdict()}
    line = {
        key: str(item) if isinstance(item, float) and not math.isfinite(item) else item for key, item in line.items()
    }
    file = _file(trainer)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
