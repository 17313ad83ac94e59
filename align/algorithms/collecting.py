"""One iteration of PPO up to its update: sample, score, compare, estimate.

Legend: B responses, N tokens of the longest response, M tokens of all responses, D width.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from align.algorithms.estimation import estimate, explained_over_ranks
from align.algorithms.ppo_settings import Algorithm, KLConfig, RolloutConfig, ScoringConfig, UpdateConfig
from align.algorithms.rollout import Prompt, RewardStatistics, Rollout, Scores, rewards_of, sample_rollout, score
from align.algorithms.rollout_buffer import Collected, Experience
from align.model.gpt import GPT, ScalarGPT
from align.model.response_states import response_states, response_tokens
from align.objectives import kl_estimate, token_logprobs
from align.rewards.base import Reward
from align.training.float64 import wide
from align.training.sharding import gathered

Reduce = Callable[[torch.Tensor, str], torch.Tensor]
"""(tensor, "sum" | "max") -> the same over all ranks"""

BreakingOff = Callable[[], AbstractContextManager[Callable[[], None] | None]]
"""Around work that may be given up when the run is asked to leave; what it yields is called between two tokens"""


class ValueHead(nn.Module):
    """A value model on the policy's own trunk: one number a hidden state."""

    def __init__(self, width: int) -> None:
        """Draw the head: normal with std 1 / sqrt(width + 1), from seed 0."""
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        generator = torch.Generator(device=self.score.weight.device).manual_seed(0)
        with torch.no_grad():
            self.score.weight.normal_(0.0, (width + 1) ** -0.5, generator=generator)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., D]`` to ``[...]``, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.score.weight.float()).squeeze(-1)


ValueModel: TypeAlias = ScalarGPT | ValueHead


def token_values(
    value: ValueModel,
    policy_states: torch.Tensor | None,
    ids: torch.Tensor,
    prompt_lengths: Sequence[int],
    lengths: Sequence[int],
    group_size: int,
) -> torch.Tensor:
    """The value ``[M]`` before each token of each response.

    Args:
        value: a head reads the policy's hidden states, a network its own.
        policy_states: ``[M, D]``; a network does not need them.
        ids: as for ``response_states``.
        prompt_lengths: the same.
        lengths: the same.
        group_size: the same.
    """
    if isinstance(value, ScalarGPT):
        return value.scores(response_states(value, ids, prompt_lengths, lengths, group_size=group_size))
    assert policy_states is not None
    return value.scores(policy_states)


@dataclass(frozen=True)
class Settings:
    """The settings that an iteration up to its update goes by."""

    algorithm: Algorithm
    rollout: RolloutConfig
    scoring: ScoringConfig
    kl: KLConfig
    update: UpdateConfig


class Collector:
    """Turns prompts into experience, and keeps what has to outlive an iteration.

    Args:
        settings: of the stage.
        policy: samples.
        reference: what the KL is measured to.
        value: value model; None for grpo and rloo.
        reward: scores responses.
        gold: scores them too, for the log only.
        tokenizer: the policy's.
        reduce: over ranks.
        breaking_off: around sampling, and around scoring.

    Attributes:
        control: of the KL coefficient.
        statistics: of the rewards.
        recompute: whether the trainer computes old log-probs again; None until it was checked.
        work: responses and tokens so far, over all ranks: ``samples``, ``tokens_sampled``, and ``tokens_read``, those
            of prompts and responses that each frozen network ran over.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        policy: GPT,
        reference: GPT,
        value: ValueModel | None,
        reward: Reward,
        gold: Reward | None,
        tokenizer: Any,
        reduce: Reduce,
        breaking_off: BreakingOff = nullcontext,
    ) -> None:
        """Nothing collected yet."""
        self.breaking_off = breaking_off
        self.settings, self.policy, self.reference, self.value = settings, policy, reference, value
        self.reward, self.gold, self.tokenizer, self.reduce = reward, gold, tokenizer, reduce
        self.control, self.statistics = settings.kl.control(), RewardStatistics()
        self.recompute: bool | None = None
        self.work = dict.fromkeys(("samples", "tokens_sampled", "tokens_read"), 0)

    def state_dict(self) -> dict[str, Any]:
        """KL coefficient, reward statistics, whether log-probs are computed again, and the work so far."""
        return {
            "control": self.control.state_dict(),
            "statistics": self.statistics.state_dict(),
            "recompute": self.recompute,
            "work": dict(self.work),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.control.load_state_dict(state["control"])
        self.statistics.load_state_dict(state["statistics"])
        self.recompute = state["recompute"]
        self.work = dict(state["work"])

    @torch.no_grad()
    def collect(self, prompts: list[Prompt], iteration: int, seed: int) -> Collected:
        """Steps 1 to 6 of an iteration; see ``PPO``.

        ``no_grad`` and not ``inference_mode``: the update differentiates expressions of what is stored here.

        Args:
            prompts: what to answer.
            iteration: from 0.
            seed: of the run.

        Raises:
            ValueError: the reward failed.
        """
        settings = self.settings
        # 1. Sample.
        rollout = self._sample(prompts, iteration, seed)
        # 2. Score.
        with self.breaking_off():
            scores, metrics = self._score(rollout)
        # 3. Log-probs under the sampling policy and the reference, and 4. values.
        logprobs, reference_logprobs, values, gap = self._read(rollout)
        # 5. What the KL costs, and the advantages.
        kl = kl_estimate(logprobs, reference_logprobs, "k1")
        kl_coef, penalties = self.control.value, self._penalties(logprobs, reference_logprobs)
        advantages, returns = estimate(
            settings.algorithm,
            scores.scores,
            penalties,
            values,
            rollout.mask,
            config=settings.update,
            group_size=settings.rollout.group_size,
            total=self._total,
        )
        # 6. Account for it, and steer the KL.
        metrics |= self._account(rollout, scores, kl, logprobs)
        metrics["rollout/kl_coef"] = kl_coef
        if gap is not None:
            metrics["rollout/logprob_gap"] = gap
        if self.value is not None:
            explained = explained_over_ranks(values, returns, rollout.mask, self._total)
            metrics["rollout/explained_variance"] = float(explained)
        if iteration == 0:
            self._check_start(metrics["rollout/kl"], rollout)
        self.control.update(metrics["rollout/kl"], settings.rollout.episodes)
        if settings.kl.stop_kl is not None and metrics["rollout/kl"] > settings.kl.stop_kl:
            return Collected(None, metrics)
        experience = Experience(
            ids=rollout.ids,
            prompt_lengths=torch.tensor(rollout.prompt_lengths, device=rollout.ids.device),
            lengths=torch.tensor(rollout.lengths, device=rollout.ids.device),
            mask=rollout.mask,
            logprobs=logprobs,
            reference_logprobs=reference_logprobs,
            values=values,
            advantages=advantages,
            returns=returns,
            scores=scores.scores,
        )
        return Collected(experience, metrics)

    def _sample(self, prompts: list[Prompt], iteration: int, seed: int) -> Rollout:
        with gathered(self.policy) as policy, self.breaking_off() as on_step:
            rollout = sample_rollout(
                policy,
                prompts,
                self.settings.rollout,
                tokenizer=self.tokenizer,
                seed=seed,
                iteration=iteration,
                on_step=on_step,
            )
        self._count(rollout)
        return rollout

    def _count(self, rollout: Rollout) -> None:
        here = [len(rollout.lengths), int(rollout.mask.sum()), sum(rollout.lengths)]
        totals = self._total(torch.tensor(here, device=rollout.ids.device)).tolist()
        self.work = {name: done + int(new) for (name, done), new in zip(self.work.items(), totals, strict=True)}

    def _score(self, rollout: Rollout) -> tuple[Scores, dict[str, float]]:
        with gathered(getattr(self.reward, "network", None)):
            rewards = rewards_of(self.reward, rollout)
        if self.settings.scoring.normalise == "running":
            self.statistics.update(rewards, self._total)
            rewards = self.statistics.normalise(rewards)
        metrics = {}
        if self.gold is not None:
            with gathered(getattr(self.gold, "network", None)):
                metrics["rollout/gold"] = self._mean(rewards_of(self.gold, rollout))
        return Scores(rewards, score(rewards, rollout.finished, self.settings.scoring)), metrics

    def _read(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float | None]:
        """Old log-probs, the reference's, values, each ``[B, N]``, and the sampler's gap where it was measured."""
        group_size, temperature = self.settings.rollout.group_size, self.settings.rollout.temperature
        rows = rollout.ids, rollout.prompt_lengths, rollout.lengths
        targets = response_tokens(*rows)

        def logprobs_of(network: GPT, states: torch.Tensor) -> torch.Tensor:
            flat = token_logprobs(states, network.output_weight, targets, temperature=temperature)
            return _padded(flat, rollout.mask)

        with gathered(self.reference) as reference:
            reference_states = response_states(reference, *rows, group_size=group_size)
            reference_logprobs = logprobs_of(reference, reference_states)
        logprobs, gap, states = rollout.logprobs, None, None
        with gathered(self.policy) as policy:
            if self.recompute is not False or isinstance(self.value, ValueHead):
                states = response_states(policy, *rows, group_size=group_size)
            if self.recompute is not False:
                assert states is not None
                ours = logprobs_of(policy, states)
        if self.recompute is not False:
            gap = float(self.reduce((ours - rollout.logprobs).abs().max(), "max"))
            if self.recompute is None:
                self.recompute = self._decide(gap)
            logprobs = ours if self.recompute else rollout.logprobs
        values = torch.zeros_like(logprobs)
        if self.value is not None:
            with gathered(self.value) as value:
                values = _padded(token_values(value, states, *rows, group_size), rollout.mask)
        return logprobs, reference_logprobs, values, gap

    def _decide(self, gap: float) -> bool:
        """Whether to compute old log-probs again, told once a run."""
        tolerance = self.settings.rollout.logprob_tolerance
        recompute = not gap <= tolerance
        rank_zero_info(
            f"old log-probs: sampler and trainer differ by at most {gap:.2g} nats at a token "
            f"(rollout.logprob_tolerance {tolerance:g}): "
            + ("the trainer computes them again" if recompute else "the sampler's are used")
        )
        return recompute

    def _penalties(self, logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
        """What each token's KL takes off the reward: ``[B, N]``."""
        kl, algorithm = self.settings.kl, self.settings.algorithm
        if kl.place(algorithm) != "reward":
            return torch.zeros_like(logprobs)
        return self.control.value * kl_estimate(logprobs, reference_logprobs, kl.estimator(algorithm))

    def _account(self, rollout: Rollout, scores: Scores, kl: torch.Tensor, logprobs: torch.Tensor) -> dict[str, float]:
        """Means over the responses of all ranks; of the entropy over their tokens."""
        responses = {
            "rollout/reward": scores.rewards,
            "rollout/score": scores.scores,
            "rollout/kl": kl.sum(1),
            "rollout/length": rollout.mask.sum(1),
            "rollout/eos_rate": rollout.finished,
        }
        metrics = {name: self._mean(values) for name, values in responses.items()}
        metrics["rollout/entropy"] = self._mean(-logprobs[rollout.mask])
        size = self.settings.rollout.group_size
        if size > 1:
            groups = scores.scores.view(-1, size)
            metrics["rollout/group_std"] = self._mean(groups.std(1))
            metrics["rollout/equal_groups"] = self._mean(groups.amax(1) == groups.amin(1))
        return metrics

    def _check_start(self, kl: float, rollout: Rollout) -> None:
        """Say it loudly if the policy does not start from the reference."""
        # Rounding adds up over a response's tokens.
        least = 1e-3 if self.reference.output_weight.dtype != torch.bfloat16 else 1e-2
        slack = (
            10 * max(self.settings.rollout.logprob_tolerance, least) * max(1.0, rollout.mask.sum(1).max().item() / 8)
        )
        if abs(kl) > slack:
            rank_zero_warn(
                f"the reference is not what the policy starts from: their KL is {kl:.3g} nats per response before the "
                "first step; leave reference out to take init_from, unless you mean to go on from an earlier run"
            )

    def _total(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.reduce(tensor, "sum")

    def _mean(self, values: torch.Tensor) -> float:
        values = wide(values)
        added, count = self._total(torch.stack([values.sum(), torch.ones_like(values).sum()]))
        return float(added / count)


def _padded(flat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``[M]`` to ``[B, N]`` float32, 0 where the mask is False."""
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, flat.float())
