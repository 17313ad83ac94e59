"""Scoring sampled responses: the second step of PPO, and what is logged of it, as functions.

Legend: B responses, N tokens of the longest response.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from align.algorithms.ppo_settings import ScoringConfig
from align.algorithms.rollout import Responses
from align.objectives import Total
from align.rewards.reward import Reward, checked_scores
from align.rewards.reward_model import RewardModel, models_in
from align.rewards.weighted_sum import WeightedSum
from align.training.float64 import wide
from align.training.sharding import gathered


class Scores(NamedTuple):
    """What responses are worth.

    Attributes:
        rewards: ``[B]`` float32, from the reward, normalised if so set.
        scores: ``[B]`` float32, what is optimised apart from the KL: clipped, minus the penalty for a missing end.
        gold: ``[B]`` float32, from the gold reward, which is only logged; None without one.
        parts: name -> ``[B]`` float32, of each part of a reward that is a ``WeightedSum``.
    """

    rewards: torch.Tensor
    scores: torch.Tensor
    gold: torch.Tensor | None
    parts: Mapping[str, torch.Tensor]


class RewardStatistics:
    """Mean and variance of all rewards of a run (Chan et al. 1979: batches merged by their sums of squares).

    Attributes:
        count: rewards so far.
        mean: of them.
        squares: sum of squared distances from the mean.
    """

    def __init__(self) -> None:
        """Start with no rewards."""
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    def update(self, rewards: torch.Tensor, total: Total) -> None:
        """Add the rewards ``[B]`` of an iteration, of all ranks."""
        values = wide(rewards)
        count, added = total(torch.stack([torch.ones_like(values).sum(), values.sum()])).tolist()
        mean = added / count
        squares = float(total((values - mean).square().sum()))
        whole, step = self.count + count, mean - self.mean
        self.squares += squares + step**2 * self.count * count / whole
        self.mean += step * count / whole
        self.count = whole

    def normalise(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards ``[B]`` minus the mean, over the (unbiased) standard deviation; only the mean where that is 0."""
        deviation = (self.squares / max(self.count - 1, 1)) ** 0.5
        return (rewards - self.mean) / (deviation or 1.0)

    def state_dict(self) -> dict[str, float]:
        """Count, mean and sum of squares."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what ``state_dict`` returned."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


def score_rollout(
    reward: Reward | None,
    gold: Reward | None,
    responses: Responses,
    config: ScoringConfig,
    *,
    longest: int,
    statistics: RewardStatistics,
    total: Total,
) -> Scores:
    """Rewards of the responses, normalised, then turned into scores.

    Args:
        reward: scores responses; None: an environment rewarded them.
        gold: scores them for the log only; None: no gold reward.
        responses: B of this rank.
        config: normalisation, clip and penalties.
        longest: the most tokens that a response may have.
        statistics: of the run's rewards; updated where rewards are normalised by them.
        total: sums over ranks.

    Raises:
        ValueError: a reward failed; see ``rewards_of``.
    """
    parts = part_rewards(reward, responses) if isinstance(reward, WeightedSum) else {}
    if isinstance(reward, WeightedSum):
        rewards: torch.Tensor = reward.total(parts)
    else:
        rewards = episode_rewards(responses) if reward is None else rewards_of(reward, responses)
    if config.normalise == "running":
        statistics.update(rewards, total)
        rewards = statistics.normalise(rewards)
    gold_rewards = None if gold is None else rewards_of(gold, responses)
    scores = score(rewards, responses.finished, responses.mask.sum(1), config, longest=longest)
    return Scores(rewards, scores, gold_rewards, parts)


def episode_rewards(responses: Responses) -> torch.Tensor:
    """What the environment gave in each episode, ``[B]`` float32."""
    assert responses.rewards is not None, "no environment rewarded the responses"
    return responses.rewards.sum(1)


def part_rewards(reward: WeightedSum, responses: Responses) -> dict[str, torch.Tensor]:
    """Name -> ``[B]`` float32, the rewards of each part, without its weight; see ``rewards_of``."""
    return {name: rewards_of(part, responses) for name, part in reward.rewards.items()}


def rewards_of(reward: Reward, responses: Responses) -> torch.Tensor:
    """The reward of each response.

    Args:
        reward: a reward model reads the sampled ids, any other the prompts, texts and columns.
        responses: B of them.

    Returns:
        ``[B]`` float32.

    Raises:
        ValueError: the reward raised, or returned another number of scores, or one that is not finite.
    """
    device = responses.ids.device
    if isinstance(reward, WeightedSum):
        total: torch.Tensor = reward.total(part_rewards(reward, responses))
        return total
    if not isinstance(reward, RewardModel):
        scores = reward(responses.prompts, responses.texts, responses.columns)
        return torch.tensor(scores, dtype=torch.float32, device=device)
    with gathered(reward.network):
        rewards = reward.score_ids(responses.ids, torch.tensor(responses.lengths, device=device))
    checked_scores(reward.name, rewards, responses.texts)
    return rewards


def score(
    rewards: torch.Tensor, finished: torch.Tensor, lengths: torch.Tensor, config: ScoringConfig, *, longest: int
) -> torch.Tensor:
    """Scores of responses: rewards clipped, minus the penalties for a missing end and for a length near the limit.

    The second is the soft overlong punishment of DAPO (Yu et al. 2025, equation 13): with C ``overlong_tokens``, a
    response of more than ``longest - C`` tokens loses ``overlong_penalty`` times its excess over C.

    Args:
        rewards: ``[B]``.
        finished: ``[B]`` bool, whether the policy ended the response itself.
        lengths: ``[B]`` tokens of each response.
        config: clip and penalties.
        longest: the most tokens that a response may have.

    Returns:
        ``[B]``.
    """
    clip = config.reward_clip
    kept = rewards if clip is None else rewards.clamp(-clip, clip)
    scores = kept - config.missing_eos_penalty * (~finished)
    if not config.overlong_tokens:
        return scores
    excess = (lengths - (longest - config.overlong_tokens)).clamp(min=0) / config.overlong_tokens
    return scores - config.overlong_penalty * excess


def model_in(reward: Reward | None) -> RewardModel | None:
    """The reward model that a reward is, or that is a part of a weighted sum; None without one.

    Raises:
        ValueError: several parts are reward models.
    """
    found = () if reward is None else models_in(reward)
    if len(found) > 1:
        names = ", ".join(model.name for model in found)
        raise ValueError(f"the parts of the reward have {len(found)} reward models, but training takes one: {names}")
    return found[0] if found else None


def check_reward(reward: Reward, tokenizer: Any) -> None:
    """Refuse a reward model whose token ids decode differently from the policy's.

    Raises:
        ValueError: the fingerprints of the tokenizers differ.
    """
    if (model := model_in(reward)) is not None:
        model.check_tokenizer(tokenizer)


def sample_metrics(responses: Responses, scores: Scores, *, group_size: int, total: Total) -> dict[str, float]:
    """What is logged of all that was sampled: means over the responses, or groups, of all ranks.

    Args:
        responses: B of this rank.
        scores: of them.
        group_size: responses to each prompt.
        total: sums over ranks.
    """
    values = {
        "rollout/reward": scores.rewards,
        "rollout/score": scores.scores,
        "rollout/length": responses.mask.sum(1),
        "rollout/eos_rate": responses.finished,
    }
    if responses.rewards is not None:
        values["rollout/turns"] = turns(responses.mask)
    if scores.gold is not None:
        values["rollout/gold"] = scores.gold
    values |= {f"reward/{name}": rewards for name, rewards in scores.parts.items()}
    if group_size > 1:
        groups = scores.scores.view(-1, group_size)
        values["rollout/group_std"] = groups.std(1)
        values["rollout/equal_groups"] = groups.amax(1) == groups.amin(1)
    return {name: mean(value, total) for name, value in values.items()}


def turns(mask: torch.Tensor) -> torch.Tensor:
    """Runs of tokens that count, ``[B]`` int64, in the rows of ``mask`` ``[B, N]``."""
    return mask[:, 0].long() + (mask[:, 1:] & ~mask[:, :-1]).sum(1)


def token_metrics(
    kl: torch.Tensor | None, logprobs: torch.Tensor, mask: torch.Tensor, *, total: Total
) -> dict[str, float]:
    """What is logged of the responses to train on: mean KL per response and entropy per token, over all ranks.

    Args:
        kl: ``[B, N]`` K1 of each token, nats; None: not computed.
        logprobs: ``[B, N]`` under the policy that sampled, nats.
        mask: ``[B, N]`` bool, True on tokens of the response.
        total: sums over ranks.
    """
    metrics = {"rollout/entropy": mean(-logprobs[mask], total)}
    return metrics if kl is None else metrics | {"rollout/kl": mean(kl.sum(1), total)}


def mean(values: torch.Tensor, total: Total) -> float:
    """Mean of ``values`` over all ranks."""
    values = wide(values)
    added, count = total(torch.stack([values.sum(), torch.ones_like(values).sum()]))
    return float(added / count)
