"""Responses as texts: prompts in, decoded samples out."""

from collections.abc import Sequence
from typing import NamedTuple

from align.generation.generate import generate
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import Prompt, encode_prompt


class TextSample(NamedTuple):
    """A response as text.

    Attributes:
        text: the decoded response, special tokens left out.
        tokens: how many tokens were sampled, a stop token included.
        finished: ended by a stop token, not by the length.
    """

    text: str
    tokens: int
    finished: bool


def sample_texts(
    network: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    *,
    seed: int | Sequence[int],
    chat: bool | None = None,
) -> list[TextSample]:
    """One response to each prompt, all in one batch.

    Args:
        network: samples in eval mode.
        tokenizer: the network's own.
        prompts: what to answer or continue.
        sampling: temperature, truncation and length.
        seed: response i draws from seed + i, or from the i-th of as many seeds.
        chat: as in ``encode_prompt``.

    Returns:
        list[TextSample]: as many as prompts, in order.
    """
    ids = [encode_prompt(tokenizer, prompt, chat=chat) for prompt in prompts]
    return sample_continuations(network, tokenizer, ids, sampling, seed=seed)


def sample_continuations(
    network: GPT,
    tokenizer: Tokenizer,
    ids: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    seed: int | Sequence[int],
) -> list[TextSample]:
    """As ``sample_texts``, of prompts that are already ids."""
    seeds = list(range(seed, seed + len(ids))) if isinstance(seed, int) else seed
    stop = tokenizer.stop_ids
    samples = generate(network, ids, sampling, stop_ids=stop, seeds=seeds, pad_id=tokenizer.pad_id or 0)
    out = []
    for row, mask, finished in zip(
        samples.ids.tolist(), samples.mask.sum(1).tolist(), samples.finished.tolist(), strict=True
    ):
        out.append(TextSample(tokenizer.decode(row[:mask]), mask, finished))
    return out
