"""Sampling responses: the first step of PPO, as functions.

Legend: B responses, T tokens of the longest row (prompt and response), N tokens of the longest response.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from align.algorithms.ppo_settings import RolloutConfig
from align.batches import PromptBatch
from align.engines import Asked, OpenEngine, Ours, Sampling, Weights
from align.engines.engine import OnProgress
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT
from align.tokenizer.prompts import Columns, Prompt
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


@dataclass(frozen=True)
class StartedRollout:
    """Responses that an engine is sampling.

    Attributes:
        prompts: B, one per response.
        sampling: of the engine.
        pad: id that fills up rows.
    """

    prompts: list[RolloutPrompt]
    sampling: Sampling
    pad: int

    def finish(self, on_progress: OnProgress | None = None) -> Responses:
        """Wait for the responses, on the policy's device.

        Raises:
            EngineError: the engine failed.
        """
        sampled = self.sampling.result(on_progress)
        rows = [[*prompt.ids, *response] for prompt, response in zip(self.prompts, sampled.ids, strict=True)]
        lengths = [len(row) for row in rows]
        filled = [[*row, *[self.pad] * (max(lengths) - len(row))] for row in rows]
        return Responses(
            ids=torch.tensor(filled, device=sampled.samples.ids.device),
            prompt_lengths=[len(prompt.ids) for prompt in self.prompts],
            lengths=lengths,
            mask=sampled.samples.mask,
            logprobs=sampled.samples.logprobs,
            finished=sampled.samples.finished,
            prompts=[prompt.content for prompt in self.prompts],
            columns=[prompt.columns for prompt in self.prompts],
            texts=sampled.texts,
        )


def start_rollout(
    policy: GPT,
    prompts: Sequence[RolloutPrompt],
    config: RolloutConfig,
    *,
    tokenizer: Any,
    seed: int,
    iteration: int,
    engine: OpenEngine | None = None,
    version: str = "",
    earlier: Sequence[int] | None = None,
    on_progress: OnProgress | None = None,
) -> StartedRollout:
    """Begin to sample ``group_size`` responses to each prompt; the policy may change as soon as this returns.

    Args:
        policy: samples over the whole vocabulary: tokens outside a top-k or top-p would have no old log-prob.
        prompts: a prompt that occurs twice gets different responses.
        config: temperature, length and precision.
        tokenizer: decodes, and knows which tokens end a response.
        seed: of the run.
        iteration: of the run.
        engine: samples; None: our own.
        version: of the policy's weights; differs whenever they do.
        earlier: for each prompt, how often it occurs before in the iteration, over all ranks (``earlier_occurrences``);
            None: the prompts are those of all ranks.
        on_progress: called now and then with the share that is done; an exception from it ends the sampling.

    Raises:
        EngineError: the engine failed.
    """
    if earlier is None:
        earlier = earlier_occurrences([[prompt.number for prompt in prompts]])[0]
    repeated = [prompt for prompt in prompts for _ in range(config.group_size)]
    samples_before = [count * config.group_size + k for count in earlier for k in range(config.group_size)]
    seeds = [
        response_seed(seed, iteration, prompt.number, sample)
        for prompt, sample in zip(repeated, samples_before, strict=True)
    ]
    asked = Asked([prompt.ids for prompt in repeated], sampling_of(config), seeds)
    with gathered(policy) as whole:
        sampling = (engine or Ours().open(tokenizer)).submit(Weights(whole, version), asked, on_progress)
    return StartedRollout(repeated, sampling, tokenizer.pad_id or 0)


def sample_rollout(policy: GPT, prompts: Sequence[RolloutPrompt], config: RolloutConfig, **settings: Any) -> Responses:
    """``start_rollout``, and wait for its ``len(prompts) * group_size`` responses."""
    return start_rollout(policy, prompts, config, **settings).finish(settings.get("on_progress"))


def sampling_of(config: RolloutConfig) -> SamplingConfig:
    """How an engine samples responses of a rollout."""
    return SamplingConfig(temperature=config.temperature, max_new_tokens=config.max_new_tokens, dtype=config.dtype)


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
