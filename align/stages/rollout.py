"""Responses of the policy to prompts: the first half of an iteration.

Legend: B responses, T tokens of the longest row (prompt and response), N tokens of the longest response.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from align.model import GPT, SamplingConfig, generate
from align.stages.ppo_settings import RolloutConfig


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
    samples = generate(
        policy,
        [prompt.ids for prompt in asked],
        SamplingConfig(temperature=config.temperature, max_new_tokens=config.max_new_tokens),
        stop_ids=tokenizer.stop_ids,
        seeds=sample_seeds(seed, iteration, [prompt.number for prompt in asked]),
        pad_id=tokenizer.pad_id or 0,
        on_step=on_step,
    )
    counts = samples.mask.sum(1).tolist()
    answers = [row[:count] for row, count in zip(samples.ids.tolist(), counts, strict=True)]
    rows = [[*prompt.ids, *answer] for prompt, answer in zip(asked, answers, strict=True)]
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
        responses=[tokenizer.decode(answer) for answer in answers],
    )


def sample_seeds(seed: int, iteration: int, numbers: Sequence[int]) -> list[int]:
    """A seed for each sample: a function of the run's seed, the iteration, the prompt and the sample's number.

    So a response does not depend on its batch, nor on what was sampled before it.

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
        digest = hashlib.sha256(f"{seed}:{iteration}:{number}:{sample}".encode()).digest()
        seeds.append(int.from_bytes(digest[:8], "little") >> 1)
    return seeds
