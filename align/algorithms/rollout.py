"""Sampling responses and scoring them: the first two steps of PPO, as functions.

Legend: B responses, T tokens of the longest row (prompt and response), N tokens of the longest response.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from align.algorithms.ppo_settings import RolloutConfig, ScoringConfig
from align.batches import PromptBatch
from align.generation.responses import sample_responses
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT
from align.objectives import Total
from align.rewards.reward import Reward, checked_scores
from align.rewards.reward_model import RewardModel, models_in
from align.rewards.weighted_sum import WeightedSum
from align.tokenizer.prompts import Columns, Prompt
from align.training.float64 import wide
from align.training.sharding import gathered


class RolloutPrompt(NamedTuple):
    """A prompt to sample responses to.

    Attributes:
        ids: tokens up to the assistant's turn.
        number: index within its split.
        content: text or messages, for rewards.
        columns: of its record, for rewards.
    """

    ids: list[int]
    number: int
    content: Prompt
    columns: Columns


def prompts_of(batch: PromptBatch) -> list[RolloutPrompt]:
    """The prompts of a batch, without the rows that only fill it up."""
    fields = batch.ids.tolist(), batch.lengths.tolist(), batch.numbers.tolist(), batch.prompts, batch.columns
    return [RolloutPrompt(ids[:length], *rest) for ids, length, *rest in zip(*fields, strict=True) if length]


class Responses(NamedTuple):
    """Sampled responses; those to the same prompt are neighbours.

    Attributes:
        ids: ``[B, T]`` int64, prompt and response, right-padded.
        prompt_lengths: B, tokens of each prompt.
        lengths: B, tokens of each row without padding.
        mask: ``[B, N]`` bool, True on tokens of the response, its end-of-turn token included; in an episode of several
            turns on those of the model's.
        logprobs: ``[B, N]`` float32, the sampler's, 0 on padding.
        finished: ``[B]`` bool, False where a response reached the length limit.
        prompts: B prompts, texts or messages.
        columns: B records, the columns that rewards read.
        texts: B texts of the responses.
        rewards: ``[B, N]`` float32, of an environment, at the last token of each turn; None without one.
    """

    ids: torch.Tensor
    prompt_lengths: list[int]
    lengths: list[int]
    mask: torch.Tensor
    logprobs: torch.Tensor
    finished: torch.Tensor
    prompts: list[Prompt]
    columns: list[Columns]
    texts: list[str]
    rewards: torch.Tensor | None = None

    @property
    def chosen(self) -> torch.Tensor | None:
        """``[M']`` bool over all tokens after the prompts: True where the policy chose it; None: it chose all."""
        return chosen_tokens(self.mask, self.prompt_lengths, self.lengths)

    @property
    def rows(self) -> tuple[torch.Tensor, list[int], list[int]]:
        """The arguments ``ids``, ``prompt_lengths`` and ``lengths`` of ``response_states``."""
        return self.ids, self.prompt_lengths, self.lengths


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


def chosen_tokens(mask: torch.Tensor, prompt_lengths: Sequence[int], lengths: Sequence[int]) -> torch.Tensor | None:
    """Of all tokens after the prompts, in the order of ``response_tokens``, which the mask counts.

    Args:
        mask: ``[B, N]`` bool, of the tokens after each prompt.
        prompt_lengths: B.
        lengths: B, tokens of each row.

    Returns:
        ``[M']`` bool; None where it counts all of them.
    """
    counts = [length - prompt for length, prompt in zip(lengths, prompt_lengths, strict=True)]
    within = torch.arange(mask.shape[1], device=mask.device) < torch.tensor(counts, device=mask.device)[:, None]
    chosen = mask[within]
    return None if bool(chosen.all()) else chosen


def chosen_of(values: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
    """Of ``values`` ``[M', ...]`` those that ``chosen`` names, ``[M, ...]``."""
    return values if chosen is None else values[chosen]


def sample_rollout(
    policy: GPT,
    prompts: Sequence[RolloutPrompt],
    config: RolloutConfig,
    *,
    tokenizer: Any,
    seed: int,
    iteration: int,
    earlier: Sequence[int] | None = None,
    on_step: Callable[[], None] | None = None,
) -> Responses:
    """Sample ``group_size`` responses to each prompt.

    Args:
        policy: samples over the whole vocabulary: tokens outside a top-k or top-p would have no old log-prob.
        prompts: a prompt that occurs twice gets different responses.
        config: temperature, length and precision.
        tokenizer: decodes, and knows which tokens end a response.
        seed: of the run.
        iteration: of the run.
        earlier: for each prompt, how often it occurs before in the iteration, over all ranks (``earlier_occurrences``);
            None: the prompts are those of all ranks.
        on_step: called between two tokens; an exception from it ends the sampling.

    Returns:
        Responses: ``len(prompts) * group_size`` of them, on the policy's device.
    """
    if earlier is None:
        earlier = earlier_occurrences([[prompt.number for prompt in prompts]])[0]
    repeated = [prompt for prompt in prompts for _ in range(config.group_size)]
    samples_before = [count * config.group_size + k for count in earlier for k in range(config.group_size)]
    with gathered(policy) as policy:
        sampled = sample_responses(
            policy,
            tokenizer,
            [prompt.ids for prompt in repeated],
            SamplingConfig(temperature=config.temperature, max_new_tokens=config.max_new_tokens, dtype=config.dtype),
            seeds=[
                response_seed(seed, iteration, prompt.number, sample)
                for prompt, sample in zip(repeated, samples_before, strict=True)
            ],
            on_step=on_step,
        )
    samples = sampled.samples
    rows = [[*prompt.ids, *response] for prompt, response in zip(repeated, sampled.ids, strict=True)]
    lengths = [len(row) for row in rows]
    pad = tokenizer.pad_id or 0
    ids = torch.tensor([[*row, *[pad] * (max(lengths) - len(row))] for row in rows], device=samples.ids.device)
    return Responses(
        ids=ids,
        prompt_lengths=[len(prompt.ids) for prompt in repeated],
        lengths=lengths,
        mask=samples.mask,
        logprobs=samples.logprobs,
        finished=samples.finished,
        prompts=[prompt.content for prompt in repeated],
        columns=[prompt.columns for prompt in repeated],
        texts=sampled.texts,
    )


def earlier_occurrences(numbers: Sequence[Sequence[int]]) -> list[list[int]]:
    """How often each prompt of an iteration occurs before, in the order of a single process.

    The samples of a prompt are numbered over all of its occurrences, and each draws from a seed of its own (run,
    iteration, prompt, number). So no two of an iteration are the same draw, on one rank or on several, and a sample
    depends neither on its batch nor on the number of ranks.

    Args:
        numbers: prompts of each rank; each takes a strided slice, so prompt i of rank r is ``i * ranks + r`` of all.

    Returns:
        list: counts in the same layout.
    """
    seen: Counter[int] = Counter()
    counts: list[list[int]] = [[] for _ in numbers]
    for of_all_ranks in zip(*numbers, strict=True):
        for rank, number in enumerate(of_all_ranks):
            counts[rank].append(seen[number])
            seen[number] += 1
    return counts


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
