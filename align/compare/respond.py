"""Every model's responses to the same prompts from the same seeds, with their log-ratios to the baseline.

Legend: P prompts, N responses to a prompt, B rows of a batch, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from align.compare.candidates import Point
from align.engines import Asked, Engine, Ours, Weights
from align.generation.sampled_ids import SampledIds
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.io.log import Log, key_of
from align.io.manifest import stage_of
from align.model.gpt import GPT
from align.objectives import sequence_logprobs
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import Prompt, answers_chats, encode_prompt

Advance = Callable[[int], None]
"""Called with the number of further prompts that are done"""


@dataclass(frozen=True)
class ResponseConfig:
    """Sampling of the responses.

    Raises:
        ValueError: a setting is invalid.
    """

    n: int = 4
    """Responses to each prompt"""
    seed: int = 0
    """Response k to prompt i uses a hash of (seed, i, k), whatever the model"""
    temperature: float = 1.0
    """Divides the logits; of both networks in the KL"""
    max_new_tokens: int = 128
    """Longest response, tokens"""
    batch_size: int = 128
    """Responses sampled at once"""
    device: str = "cpu"
    """Device of the networks, in torch's notation"""
    engine: Engine = Ours()  # noqa: RUF009 (frozen)
    """What samples; log-ratios are ours with any engine"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        for name in ("n", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}: it must be above 0, a greedy response has no KL")


class Response(NamedTuple):
    """One response.

    Attributes:
        text: decoded, without special tokens.
        tokens: number of sampled tokens, the stop token included.
        finished: ended with a stop token, not truncated at max_new_tokens.
        log_ratio: log pi(response) - log baseline(response), nats; None if the response does not fit the baseline's
            context.
    """

    text: str
    tokens: int
    finished: bool
    log_ratio: float | None


class Sampler:
    """Samples responses to fixed prompts and computes their log-ratios to a baseline.

    Args:
        prompts: the same for every model.
        config: see ``ResponseConfig``.
        folder: of the logs; responses that are logged there are not sampled again.
        first: number of the first response to each prompt: response k uses the random numbers of response first + k.
    """

    def __init__(self, prompts: Sequence[Prompt], config: ResponseConfig, folder: Path, *, first: int = 0) -> None:
        """Keep them."""
        self.prompts, self.config, self.folder, self.first = prompts, config, folder, first

    def log(self, point: Point, baseline: Point) -> Log:
        """The log of the responses of a point, with their log-ratios to a baseline."""
        facts: list[str | bool] = []
        for place in (point, baseline):
            tokenizer = Tokenizer.load(place.model)
            facts += [place.fingerprint(), tokenizer.fingerprint, answers_chats(tokenizer, stage_of(place.model))]
            facts += map(str, tokenizer.stop_ids)
        # Another type of device rounds differently; which one of its type does not matter.
        settings = {name: value for name, value in vars(self.config).items() if name != "engine"}
        settings |= {"device": torch.device(self.config.device).type, "first": self.first}
        settings |= self.config.engine.identity
        return Log(self.folder / f"responses-{key_of(facts, list(self.prompts), settings)}.jsonl")

    def sample(self, point: Point, baseline: Point, advance: Advance) -> list[list[Response]]:
        """``N`` responses to each of the ``P`` prompts.

        Args:
            point: the weights that are sampled.
            baseline: the weights that the KL is to.
            advance: called with the number of prompts of each batch.

        Raises:
            ValueError: a prompt leaves no room for a response, or a network cannot be loaded.
        """
        log = self.log(point, baseline)
        advance(len(log))
        if len(log) < len(self.prompts):
            pair = _Pair(point, baseline, self.config, first=self.first)
            group = max(1, self.config.batch_size // self.config.n)
            while len(log) < len(self.prompts):
                first = len(log)
                batch = self.prompts[first : first + group]
                log.append(pair.sample(batch, first))
                advance(len(batch))
            pair.engine.close()
        return [[Response(*fields) for fields in row] for row in log]


class _Pair:
    """A network that is sampled and the baseline's, which may have another tokenizer."""

    def __init__(self, point: Point, baseline: Point, config: ResponseConfig, *, first: int) -> None:
        self.config, self.first = config, first
        self.tokenizer, self.network = Tokenizer.load(point.model), point.load(config.device)
        self.baseline = self.network if point == baseline else baseline.load(config.device)
        self.baseline_tokenizer = Tokenizer.load(baseline.model)
        self.same_ids = self.tokenizer.fingerprint == self.baseline_tokenizer.fingerprint
        self.chat = answers_chats(self.tokenizer, stage_of(point.model))
        self.baseline_chat = answers_chats(self.baseline_tokenizer, stage_of(baseline.model))
        self.where = point.model
        self.engine = config.engine.open(self.tokenizer)

    def sample(self, prompts: Sequence[Prompt], first: int) -> list[list[Response]]:
        """Responses to a batch of prompts, the first of which is number ``first``."""
        n = self.config.n
        asked = [self._encoded(number, prompt) for number, prompt in enumerate(prompts, first)]
        for number, ids in enumerate(asked, first):
            if len(ids) >= self.network.config.context:
                raise ValueError(
                    f"prompt {number + 1} has {len(ids)} tokens, and the context of {self.where} is "
                    f"{self.network.config.context}: no room for a response; leave the prompt out"
                )
        rows = [ids for ids in asked for _ in range(n)]
        seeds = [response_seed(self.config.seed, first + row // n, self.first + row % n) for row in range(len(rows))]
        sampling = SamplingConfig(temperature=self.config.temperature, max_new_tokens=self.config.max_new_tokens)
        sampled = self.engine.sample(Weights(self.network, ""), Asked(rows, sampling, seeds))
        response_ids, texts, finished = sampled.ids, sampled.texts, sampled.finished
        ratios = self._log_ratios(rows, response_ids, prompts, texts, finished)
        responses = [
            Response(text, len(ids), end, None if ratio is None else round(ratio, 5))
            for text, ids, end, ratio in zip(texts, response_ids, finished, ratios, strict=True)
        ]
        return [responses[start : start + n] for start in range(0, len(responses), n)]

    def _encoded(self, number: int, prompt: Prompt) -> list[int]:
        try:
            return encode_prompt(self.tokenizer, prompt, chat=self.chat)
        except ValueError as error:
            raise ValueError(f"{self.where} cannot be asked prompt {number + 1}: {error}") from error

    def _log_ratios(
        self,
        asked: Sequence[list[int]],
        response_ids: Sequence[list[int]],
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        finished: Sequence[bool],
    ) -> list[float | None]:
        if self.network is self.baseline:
            return [0.0] * len(asked)
        temperature = self.config.temperature
        own = logprobs(
            self.network, asked, response_ids, temperature=temperature, sampled=SampledIds.of(self.tokenizer)
        )
        other = self.baseline_tokenizer
        if not self.same_ids or self.chat != self.baseline_chat:
            encoded = [encode_prompt(other, prompt, chat=self.baseline_chat) for prompt in prompts]
            asked = [ids for ids in encoded for _ in range(self.config.n)]
        if not self.same_ids:
            # The same text in the baseline's ids, with the end of the turn where the policy wrote one.
            end = [] if other.end_of_turn_id is None else [other.end_of_turn_id]
            response_ids = [other.encode(text) + end * ended for text, ended in zip(texts, finished, strict=True)]
        theirs = logprobs(self.baseline, asked, response_ids, temperature=temperature, sampled=SampledIds.of(other))
        longest = self.baseline.config.context + 1
        fits = [len(prompt) + len(ids) <= longest for prompt, ids in zip(asked, response_ids, strict=True)]
        return [ratio if fit else None for ratio, fit in zip((own - theirs).tolist(), fits, strict=True)]


@torch.no_grad()
def logprobs(
    network: GPT,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    sampled: SampledIds = SampledIds(),  # noqa: B008 (frozen)
) -> torch.Tensor:
    """Log-probabilities of whole responses, nats; tokens beyond the network's context are left out.

    Args:
        network: in eval mode.
        prompts: ids of each prompt.
        responses: ids of each response.
        temperature: divides the logits.
        sampled: ids that can be sampled, by default all rows of the output matrix; the responses have no others.

    Returns:
        ``[B]`` float64 on the CPU, whatever the network's device.
    """
    rows = [
        ([*prompt, *response])[: network.config.context + 1]
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, whole) in enumerate(zip(prompts, rows, strict=True)):
        ids[row, : len(whole)] = torch.tensor(whole)
        mask[row, len(prompt) : len(whole)] = True
    weight = sampled.rows(network.output_weight)
    ids, mask = ids.to(weight.device), mask.to(weight.device)
    hidden = network.hidden(ids[:, :-1])
    ids = sampled.indices(ids, network.config.vocab_size)
    logprobs = sequence_logprobs(hidden, weight, ids, mask, temperature=temperature, softcap=network.softcap)
    return logprobs.cpu().double()
