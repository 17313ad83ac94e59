"""What was written, read again by the program it is for, against the source.

Legend: N tokens of a response, V vocabulary.

1. The source answers each prompt, greedily and once at temperature 1 (a fixed seed).
2. The export's own tokenizer must give the source's ids for prompts and answers.
3. On the sampled answers: log-probabilities of all tokens of the vocabulary, and perplexity.
4. The export answers greedily too: the same text or not, and what a judge thinks of both.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import torch

from align.export.source import Source
from align.generation.responses import sample_responses
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT, ScalarGPT
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import Prompt

Judge = Callable[[Sequence[Any], Sequence[str]], list[float]]
"""(prompts, responses) -> one score each; higher is better"""

PLAIN_PROMPTS: tuple[str, ...] = (
    "Tell me a story about a dog and a boat.",
    "What do you like to do on a rainy day?",
    "Write two sentences about the sea.",
    "Who are you?",
    "Describe a garden in spring.",
    "Why is the sky blue?",
    "List three animals.",
    "Say something kind.",
)
"""What is asked where no prompts are given"""


class Reading(Protocol):
    """An export as the program that it is for has read it."""

    def tokenize(self, text: str) -> list[int]:
        """The ids of ordinary text."""
        ...

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids of a chat up to the assistant's turn."""
        ...

    def logprobs(self, ids: list[int], start: int) -> torch.Tensor:
        """``[N, V]`` float: of every token at the places of ``ids[start:]``; NaN where the program does not tell."""
        ...

    def answer(self, ids: list[int], max_new_tokens: int) -> str:
        """The greedy response to ``ids``, special tokens left out."""
        ...

    def score(self, ids: list[int]) -> float:
        """A reward model's score of ``ids``."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


@dataclass(frozen=True)
class Verification:
    """How an export differs from its source; None: not measured."""

    read_by: str
    """The program that read the export, with its version"""
    prompts: int
    """Prompts compared"""
    tokens: int
    """Places where distributions (or rows where scores) were compared"""
    max_difference: float
    """Largest difference of a log-probability (nats) over places and vocabulary, or of a reward model's score"""
    perplexity_source: float | None = None
    """Of the source's sampled answers under the source"""
    perplexity_export: float | None = None
    """Of the same answers under the export"""
    same_text: int | None = None
    """Prompts with the same greedy text"""
    reward_source: float | None = None
    """The judge's mean score of the source's greedy answers"""
    reward_export: float | None = None
    """The judge's mean score of the export's greedy answers"""
    win_rate: float | None = None
    """Share of prompts where the judge prefers the export's answer, half of the ties included"""

    @property
    def perplexity_change(self) -> float | None:
        """Relative, as in 0.01 for one percent more."""
        if self.perplexity_source is None or self.perplexity_export is None:
            return None
        return self.perplexity_export / self.perplexity_source - 1

    def to_dict(self) -> dict[str, Any]:
        """What was measured, as JSON values."""
        values = asdict(self) | {"perplexity_change": self.perplexity_change}
        return {name: value for name, value in values.items() if value is not None}


def verify(
    source: Source,
    reading: Reading,
    read_by: str,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    judge: Judge | None,
) -> Verification:
    """Compare an export with its source.

    Args:
        source: what was exported.
        reading: what was written, read again.
        read_by: the reader's name and version.
        prompts: what to answer; a reward model scores them, with the answer as the last message if there is one.
        max_new_tokens: longest answer, tokens.
        judge: scores answers; None: the text alone is compared.

    Raises:
        ValueError: no prompt leaves room for an answer, or the export's tokenizer gives other ids.
    """
    ids = [prompt_ids(source.tokenizer, prompt) for prompt in prompts]
    context = source.network.config.context
    fitting = [number for number, row in enumerate(ids) if len(row) < context]
    if not fitting:
        raise ValueError(f"no prompt is shorter than the context, {context} tokens: nothing to verify with")
    prompts, ids = [prompts[number] for number in fitting], [ids[number] for number in fitting]
    _check_tokens(source, reading, prompts)
    if isinstance(source.network, ScalarGPT):
        return _verify_scores(source.network, reading, read_by, ids)
    return _verify_language(source, reading, read_by, (prompts, ids), max_new_tokens=max_new_tokens, judge=judge)


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """What an answer to a prompt continues, as the network saw it in training."""
    if tokenizer.spec.chat_template is None:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        return [*tokenizer.opening_ids, *tokenizer.encode(text)]
    messages = _messages(prompt)
    return tokenizer.render_chat(messages, add_generation_prompt=messages[-1]["role"] != "assistant").ids


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def _check_tokens(source: Source, reading: Reading, prompts: Sequence[Prompt]) -> None:
    tokenizer = source.tokenizer
    for prompt in prompts:
        text = _messages(prompt)[-1]["content"]
        _same_ids(text, tokenizer.encode(text), reading.tokenize(text))
        messages = _messages(prompt)
        if tokenizer.spec.chat_template is not None and messages[-1]["role"] != "assistant":
            _same_ids(f"the chat that ends {text}", prompt_ids(tokenizer, prompt), reading.chat_ids(messages))


def _same_ids(text: str, ours: list[int], theirs: list[int]) -> None:
    if ours != theirs:
        place = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        raise ValueError(
            f"verify: the export's tokenizer gives other ids from place {place} on ({theirs[place : place + 3]}, the "
            f"source gives {ours[place : place + 3]}) for {text[:60]!r}"
        )


def _verify_language(
    source: Source,
    reading: Reading,
    read_by: str,
    asked: tuple[Sequence[Prompt], list[list[int]]],
    *,
    max_new_tokens: int,
    judge: Judge | None,
) -> Verification:
    network, tokenizer = cast(GPT, source.network), source.tokenizer
    prompts, ids = asked
    greedy = answers(network, tokenizer, ids, max_new_tokens, temperature=0.0)  # 1
    sampled = answers(network, tokenizer, ids, max_new_tokens, temperature=1.0)
    largest, nll_source, nll_export, count = 0.0, 0.0, 0.0, 0
    for prompt, answer in zip(ids, sampled, strict=True):  # 3
        ours = torch.log_softmax(_logits(network, prompt + answer, len(prompt)), -1)
        theirs = reading.logprobs(prompt + answer, len(prompt))
        places = torch.arange(len(answer)), torch.tensor(answer)
        largest = max(largest, (ours - theirs).abs().nan_to_num(0.0).max().item())
        nll_source -= ours[places].sum().item()
        nll_export -= theirs[places].sum().item()
        count += len(answer)
    # Rows of the embedding beyond the tokenizer's ids are no text, and only an untrained network draws them.
    texts = [tokenizer.decode(i for i in answer if i < tokenizer.vocab_size) for answer in greedy]
    context = network.config.context
    exported = [reading.answer(prompt, min(max_new_tokens, context - len(prompt))) for prompt in ids]  # 4
    return Verification(
        read_by=read_by,
        prompts=len(ids),
        tokens=count,
        max_difference=largest,
        perplexity_source=math.exp(nll_source / count),
        perplexity_export=math.exp(nll_export / count) if math.isfinite(nll_export) else math.inf,
        same_text=sum(ours == theirs for ours, theirs in zip(texts, exported, strict=True)),
        **(judged(judge, prompts, texts, exported) if judge else {}),
    )


def judged(judge: Judge, prompts: Sequence[Prompt], ours: list[str], theirs: list[str]) -> dict[str, float]:
    """What a judge says of two models' answers: both means, and the share of prompts where ``theirs`` is better."""
    before, after = judge(prompts, ours), judge(prompts, theirs)
    wins = sum((b > a) + 0.5 * (b == a) for a, b in zip(before, after, strict=True))
    return {
        "reward_source": sum(before) / len(before),
        "reward_export": sum(after) / len(after),
        "win_rate": wins / len(before),
    }


def answers(
    network: GPT, tokenizer: Tokenizer, ids: list[list[int]], max_new_tokens: int, *, temperature: float
) -> list[list[int]]:
    """One response to each row of ``ids``."""
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=max_new_tokens)
    seeds = [response_seed(0, row) for row in range(len(ids))]
    return sample_responses(network, tokenizer, ids, sampling, seeds=seeds).ids


@torch.no_grad()
def _logits(network: GPT, ids: list[int], start: int) -> torch.Tensor:
    """``[N, V]`` float32: what predicts ``ids[start:]``."""
    return network(torch.tensor([ids]))[0, start - 1 : -1].float()


@torch.no_grad()
def _verify_scores(network: ScalarGPT, reading: Reading, read_by: str, ids: list[list[int]]) -> Verification:
    largest = 0.0
    for row in ids:
        ours = network.last_scores(torch.tensor([row]), torch.tensor([len(row)])).item()
        largest = max(largest, abs(ours - reading.score(row)))
    return Verification(read_by=read_by, prompts=len(ids), tokens=len(ids), max_difference=largest)
