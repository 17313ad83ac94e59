"""Responses of the policy to prompts: the first half of an iteration.

Legend: B responses, T tokens of the longest row (prompt and response), N tokens of the longest response.

From responses to scores: the reward, its normalisation, its clipping, and the penalty for not ending.

Legend: B responses, T tokens of the longest row.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from align.algorithms.ppo_settings import RolloutConfig, ScoringConfig
from align.generation.responses import sample_responses
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT
from align.rewards.base import Reward
from align.rewards.reward_model import RewardModel
from align.training.float64 import wide


class Prompt(NamedTuple):
    """One prompt.

    Attributes:
        ids: tokens up to the assistant's turn.
        number: of the prompt within its split.
        text: what it asks, for reward functions.
    """

    ids: list[int]
    number: int
    text: str


class Rollout(NamedTuple):
    """Sampled responses; the responses to one prompt stand together.

    Attributes:
        ids: ``[B, T]`` int64, prompt and response, right-padded.
        prompt_lengths: B, tokens of each prompt.
        lengths: B, tokens of each row without padding.
        mask: ``[B, N]`` bool, True on tokens of the response, what ended it included.
        logprobs: ``[B, N]`` float32, the sampler's, 0 on padding.
        finished: ``[B]`` bool, False where a response was cut.
        prompts: B texts.
        responses: B texts.
    """

    ids: torch.Tensor
    prompt_lengths: list[int]
    lengths: list[int]
    mask: torch.Tensor
    logprobs: torch.Tensor
    finished: torch.Tensor
    prompts: list[str]
    responses: list[str]


def sample_rollout(
    policy: GPT,
    prompts: Sequence[Prompt],
    config: RolloutConfig,
    *,
    tokenizer: Any,
    seed: int,
    iteration: int,
    on_step: Callable[[], None] | None = None,
) -> Rollout:
    """Sample ``group_size`` responses to each prompt.

    Args:
        policy: samples, over the whole vocabulary: what top-k or top-p cut away would have no old log-prob.
        prompts: the same prompt may come twice; its samples are then numbered on.
        config: temperature and length.
        tokenizer: decodes, and knows what ends a response.
        seed: of the run.
        iteration: of the run.
        on_step: called between two tokens; what it raises ends the sampling.

    Returns:
        Rollout: ``len(prompts) * group_size`` responses, on the policy's device.
    """
    asked = [prompt for prompt in prompts for _ in range(config.group_size)]
    sampled = sample_responses(
        policy,
        tokenizer,
        [prompt.ids for prompt in asked],
        SamplingConfig(temperature=config.temperature, max_new_tokens=config.max_new_tokens),
        seeds=sample_seeds(seed, iteration, [prompt.number for prompt in asked]),
        on_step=on_step,
    )
    samples = sampled.samples
    rows = [[*prompt.ids, *response] for prompt, response in zip(asked, sampled.ids, strict=True)]
    lengths = [len(row) for row in rows]
    pad = tokenizer.pad_id or 0
    ids = torch.tensor([[*row, *[pad] * (max(lengths) - len(row))] for row in rows], device=samples.ids.device)
    return Rollout(
        ids=ids,
        prompt_lengths=[len(prompt.ids) for prompt in asked],
        lengths=lengths,
        mask=samples.mask,
        logprobs=samples.logprobs,
        finished=samples.finished,
        prompts=[prompt.text for prompt in asked],
        responses=sampled.texts,
    )


def sample_seeds(seed: int, iteration: int, numbers: Sequence[int]) -> list[int]:
    """A seed for each sample: a function of the run's seed, the iteration, the prompt and the sample's number.

    So a response's random numbers do not depend on its batch, nor on what was sampled before it.

    Args:
        seed: of the run.
        iteration: of the run.
        numbers: the prompt of each sample; the samples of one prompt are numbered in order.
    """
    seen: dict[int, int] = {}
    seeds = []
    for number in numbers:
        sample = seen.get(number, 0)
        seen[number] = sample + 1
        seeds.append(response_seed(seed, iteration, number, sample))
    return seeds


Total = Callable[[torch.Tensor], torch.Tensor]
"""Adds a tensor up over ranks"""


class Scores(NamedTuple):
    """What responses are worth.

    Attributes:
        rewards: ``[B]`` float32, as the reward gave them, normalised if so set.
        scores: ``[B]`` float32, what is optimised, the KL aside: clipped, and without the penalty for not ending.
    """

    rewards: torch.Tensor
    scores: torch.Tensor


class RewardStatistics:
    """Mean and variance of all rewards of a run (Chan et al. 1979: batches merged by their sums of squares).

    Attributes:
        count: rewards so far.
        mean: of them.
        squares: sum of squared distances from the mean.
    """

    def __init__(self) -> None:
        """Start from nothing."""
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
        """Go on from ``state_dict``."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


def rewards_of(reward: Reward, rollout: Rollout) -> torch.Tensor:
    """What the reward says of each response.

    Args:
        reward: a reward model reads the ids as they were sampled, a function the texts.
        rollout: B responses.

    Returns:
        ``[B]`` float32.

    Raises:
        ValueError: the reward failed, or gave another number of scores, or one that is not finite.
    """
    device = rollout.ids.device
    if isinstance(reward, RewardModel):
        rewards = reward.score_ids(rollout.ids, torch.tensor(rollout.lengths, device=device))
        if not bool(rewards.isfinite().all()):
            row = int((~rewards.isfinite()).nonzero()[0])
            raise ValueError(
                f"reward {reward.name!r} gave {rewards[row].item()} for response {row} of {len(rewards)} "
                f"({rollout.responses[row][:60]!r}); it must be a finite number"
            )
        return rewards
    return torch.tensor(reward(rollout.prompts, rollout.responses), dtype=torch.float32, device=device)


def score(rewards: torch.Tensor, finished: torch.Tensor, config: ScoringConfig) -> torch.Tensor:
    """Scores of responses: rewards clipped, minus the penalty where a response was cut.

    Args:
        rewards: ``[B]``.
        finished: ``[B]`` bool, whether the policy ended the response itself.
        config: clip and penalty.

    Returns:
        ``[B]``.
    """
    clip = config.reward_clip
    kept = rewards if clip is None else rewards.clamp(-clip, clip)
    return kept - config.missing_eos_penalty * (~finished)


def check_reward(reward: Reward, tokenizer: Any) -> None:
    """Refuse a reward model whose ids mean other text than the policy's.

    Raises:
        ValueError: the fingerprints of the tokenizers differ.
    """
    if isinstance(reward, RewardModel):
        reward.check_tokenizer(tokenizer)
