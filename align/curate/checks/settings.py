"""Checks of settings against the data and against each other; and what a run will cost."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from align.curate.check import Check, Finding, percent
from align.curate.context import Context


@dataclass(frozen=True)
class NoRoomForResponses(Check):
    """Prompt and response together longer than the policy can read."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """An error of rollouts; a warning of samples that are only looked at."""
        policy, lengths = context.policy, context.train.lengths
        if policy is None or context.kind == "texts" or not len(lengths):
            return
        if context.kind == "prompts":
            prompts = lengths
        else:
            prompts = np.array([int(np.argmax(one.rows[0].mask)) for one in context.train.samples])
        for setting, tokens in context.run.max_new_tokens.items():
            beyond = int((prompts + tokens > policy.context).sum())
            if beyond:
                yield Finding(
                    f"{setting} is {tokens}, but {percent(beyond, len(prompts))} prompts leave less room in the "
                    f"policy's context of {policy.context}; the longest has {int(prompts.max())} tokens",
                    f"lower {setting} to {max(1, policy.context - int(prompts.max()))}, or drop long prompts with "
                    "data.init_args.max_prompt_tokens",
                    count=beyond,
                    total=len(prompts),
                    split="train",
                    severity=None if setting.startswith("rollout") else "warning",
                )


@dataclass(frozen=True)
class ResponseLimit(Check):
    """Sampled responses limited to fewer tokens than half of those in the data have."""

    def find(self, context: Context) -> Iterable[Finding]:
        """For stages without responses of their own, those of the pipeline's earlier stages."""
        found = next(
            (
                (name, one.train)
                for name, one in ((context.name, context), *reversed([*context.others.items()]))
                if one.kind in ("chats", "pairs") and one.train.samples
            ),
            None,
        )
        if found is None:
            return
        name, split = found
        median = int(np.median(split.response_lengths[:, 0]))
        for setting, tokens in context.run.max_new_tokens.items():
            if tokens < median:
                where = "the data" if name == context.name else f"the data of {name}"
                yield Finding(
                    f"{setting} is {tokens}, but half of the responses in {where} have at least {median} tokens",
                    f"raise {setting} to {int(np.quantile(split.response_lengths[:, 0], 0.95))}, the 95% quantile",
                )


@dataclass(frozen=True)
class ValidationInterval(Check):
    """A validation that never comes."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        run = context.run
        if not run.has_validation or not context.rows_per_epoch:
            return
        batches = context.batches_per_epoch if run.rollout_steps is None else run.rollout_steps * run.accumulate
        interval = run.val_check_interval
        if isinstance(interval, int) and interval > 1 and run.check_val_every_n_epoch is not None:
            if interval > batches:
                yield Finding(
                    f"trainer.val_check_interval is {interval}, but an epoch has {batches} batches",
                    "lower it, or set trainer.check_val_every_n_epoch to null, which counts batches across epochs",
                )
            return
        total = context.steps * run.accumulate
        if isinstance(interval, int) and interval > 1 and interval > total:
            yield Finding(
                f"trainer.val_check_interval is {interval}, but the run has {total} batches: it never validates",
                "lower it",
                severity="warning",
            )
        every = run.check_val_every_n_epoch
        if every is not None and run.max_steps < 0 and 0 <= run.max_epochs < every:
            yield Finding(
                f"trainer.check_val_every_n_epoch is {every}, but trainer.max_epochs is {run.max_epochs}: it never "
                "validates",
                "lower it",
                severity="warning",
            )


@dataclass(frozen=True)
class Warmup(Check):
    """A warm-up as long as the run, so that the learning rate never reaches its peak; or over half of it."""

    share: float = 0.5
    """Share of the run that may be warm-up"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        steps, warmup = context.steps, context.run.warmup_steps
        taken = warmup if warmup >= 1 else warmup * steps
        if steps and taken > self.share * steps:
            yield Finding(
                f"schedule.warmup_steps is {warmup:g}, but the run has {steps:,} optimizer steps",
                "set it to a share of the run, such as 0.1",
            )


@dataclass(frozen=True)
class BatchSize(Check):
    """An optimizer step that takes more rows than there are."""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        run = context.run
        rows = run.batch_size * run.ranks * run.accumulate
        if run.rollout_prompts is None and 0 < context.rows_per_epoch < rows:
            yield Finding(
                f"an optimizer step takes {rows:,} rows (data.init_args.batch_size {run.batch_size} x "
                f"{run.ranks} rank(s) x trainer.accumulate_grad_batches {run.accumulate}), but the training data has "
                f"{context.rows_per_epoch:,}",
                f"lower data.init_args.batch_size to {max(1, context.rows_per_epoch // (10 * run.ranks))} or less",
            )


@dataclass(frozen=True)
class RolloutPrompts(Check):
    """An iteration of PPO that takes more prompts than there are."""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        wanted = context.run.rollout_prompts
        if wanted is not None and 0 < context.rows_per_epoch < wanted:
            yield Finding(
                f"an iteration takes {wanted:,} prompts (rollout.episodes / rollout.group_size), but there are "
                f"{context.rows_per_epoch:,}",
                "lower rollout.episodes, raise rollout.group_size, or add prompts",
            )


@dataclass(frozen=True)
class LearningRate(Check):
    """A learning rate far from what suits the stage, the size of the network and adapters (docs/learning_rates.md)."""

    factor: float = 10.0
    """Ratio to the default that is too high: with it SFT and DPO ended worse than they began"""
    rollout_factor: float = 20.0
    """The same of stages with rollouts, whose recipes that work reach 14 (recipes/tiny/ppo.yaml)"""
    low_factor: float = 20.0
    """Ratio of the default to a rate that is too low; published rates reach 10 (DPO of SmolLM2)"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        run = context.run
        if run.lr is None or run.default_lr is None:
            return
        ratio = run.lr / run.default_lr
        if not 1 / self.low_factor < ratio < (self.factor if run.rollout_tokens is None else self.rollout_factor):
            what = "adapters" if run.adapters else "all weights"
            side = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g} of"
            yield Finding(
                f"optimizer.lr is {run.lr:g}, {side} the default of {context.stage} for {what} at this size, "
                f"{run.default_lr:g}",
                "set optimizer.lr to null for the default",
            )


@dataclass(frozen=True)
class RunLength(Check):
    """Optimizer steps, tokens and passes over the data; too few steps, or too many passes."""

    severity = "note"
    least_steps: int = 10
    """Fewest optimizer steps"""
    most_epochs: float = 20.0
    """Most passes over the training data"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        steps = context.steps
        if not context.train.samples:
            return
        tokens = round(context.train.tokens * context.train.scale)
        words = f"{steps:,} optimizer steps, {context.epochs:.3g} passes over {tokens:,} tokens"
        if context.train.scale > 1:
            words += f" (scaled from {len(context.train.samples):,} records that were read)"
        yield Finding(words)
        if 0 < steps < self.least_steps:
            yield Finding(
                f"the run has only {steps} optimizer step(s)",
                "lower the batch size or train for more epochs",
                severity="warning",
            )
        if steps == 0:
            yield Finding(
                "trainer.max_epochs and trainer.max_steps leave no step to train",
                "set one of them above 0, and the one that is not the limit to -1",
                severity="error",
            )
        if context.epochs > self.most_epochs:
            yield Finding(
                f"the run passes over the data {context.epochs:.3g} times: it will memorize them",
                "train for fewer steps, or on more data",
                severity="warning",
            )


@dataclass(frozen=True)
class Memory(Check):
    """Estimated memory of a training step, against what is free."""

    severity = "note"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        parts, free = context.run.memory, context.run.free_memory
        if not parts:
            return
        total = sum(parts.values())
        words = ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items() if size)
        room = "" if free is None else f"; {_gigabytes(free)} are free on {context.run.device}"
        short = free is not None and total > free
        yield Finding(
            f"a training step needs about {_gigabytes(total)} ({words}){room}",
            "lower data.init_args.batch_size, set memory.activation_checkpointing, or train adapters" if short else "",
            severity="warning" if short else None,
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


@dataclass(frozen=True)
class Time(Check):
    """Time of the training steps at the measured speed of matrix products: without sampling, validation and data.

    Rollouts count as if every response had the greatest length.
    """

    severity = "note"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        run = context.run
        if run.flops_per_token is None or not run.flops_per_second or not context.train.samples:
            return
        split = context.train
        if run.rollout_steps is not None:
            mean = split.tokens / len(split.samples) + (run.rollout_tokens or 0)
            tokens = context.steps / run.rollout_steps * run.rollout_passes * run.rollout_episodes * mean
        else:
            tokens = (split.tokens if split.computed is None else split.computed) * split.scale * context.epochs
        seconds = tokens * run.flops_per_token / run.flops_per_second
        yield Finding(
            f"about {_duration(seconds)} of training steps on {run.device}: {tokens:.3g} tokens x "
            f"{run.flops_per_token / 1e6:.3g} MFLOP at {run.flops_per_second / 1e9:.3g} GFLOP/s, measured on matrix "
            "products"
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
