"""Verify an export: load it in the program it is for, and compare it with its source.

Legend: N tokens of a response, V vocabulary.

1. The source responds to each prompt, greedily and once at temperature 1 with a fixed seed.
2. The export's tokenizer must give the source's ids for the prompts.
3. On the sampled responses, compare the log-probabilities of the whole vocabulary, and the perplexity.
4. The export responds greedily too: compare the texts, and the rewards that a judge gives both.
5. ``check`` refuses differences above a ``Tolerance``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import torch

from align.export.export_settings import ExportSettings
from align.export.source import Source
from align.generation.responses import Responses, sample_responses
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT, ScalarGPT
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import Prompt

Judge = Callable[[Sequence[Any], Sequence[str]], list[float]]
"""(prompts, responses) -> one reward each; higher is better"""

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
"""Prompts used where none are given"""


class Reading(Protocol):
    """An export, loaded in the program it is for."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text."""
        ...

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a chat up to the assistant's turn."""
        ...

    def logprobs(self, ids: list[int], start: int) -> torch.Tensor:
        """``[N, V]`` float: of every token at the positions of ``ids[start:]``; NaN where the program gives none."""
        ...

    def respond(self, ids: list[int], max_new_tokens: int) -> str:
        """The greedy response to ``ids``, without special tokens."""
        ...

    def score(self, ids: list[int]) -> float:
        """A reward model's score of ``ids``."""
        ...

    def close(self) -> None:
        """Release its resources."""
        ...


@dataclass(frozen=True)
class Verification:
    """Differences between an export and its source; None: not measured."""

    read_by: str
    """The program that loaded the export, with its version"""
    prompts: int
    """Prompts compared"""
    tokens: int
    """Positions (for a reward model: rows) compared"""
    max_difference: float
    """Largest difference of a log-probability (nats) over positions and vocabulary, or of a reward model's score"""
    perplexity_source: float | None = None
    """Of the source's sampled responses, under the source"""
    perplexity_export: float | None = None
    """Of the same responses, under the export"""
    same_text: int | None = None
    """Prompts with the same greedy response"""
    reward_source: float | None = None
    """The judge's mean reward of the source's greedy responses"""
    reward_export: float | None = None
    """The judge's mean reward of the export's greedy responses"""
    win_rate: float | None = None
    """Share of prompts where the judge prefers the export's response; ties count half"""

    @property
    def perplexity_change(self) -> float | None:
        """Relative change: 0.01 is one percent more."""
        if self.perplexity_source is None or self.perplexity_export is None:
            return None
        return self.perplexity_export / self.perplexity_source - 1

    def to_dict(self) -> dict[str, Any]:
        """The measured values, for JSON."""
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
        reading: the export.
        read_by: the program's name and version.
        prompts: to respond to; a reward model scores them, including a response as the last message.
        max_new_tokens: maximum response length, tokens.
        judge: gives responses a reward; None: compare texts only.

    Raises:
        ValueError: no prompt leaves room for a response, or the export's tokenizer gives other ids.
    """
    ids = [prompt_ids(source.tokenizer, prompt) for prompt in prompts]
    context = source.network.config.context
    fitting = [number for number, row in enumerate(ids) if len(row) < context]
    if not fitting:
        raise ValueError(f"no prompt is shorter than the context, {context} tokens: give shorter prompts")
    prompts, ids = [prompts[number] for number in fitting], [ids[number] for number in fitting]
    _check_tokens(source, reading, prompts)
    if isinstance(source.network, ScalarGPT):
        return _verify_scores(source.network, reading, read_by, ids)
    return _verify_language(source, reading, read_by, (prompts, ids), max_new_tokens=max_new_tokens, judge=judge)


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Token ids of a prompt up to the response, as in training."""
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
        start = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        raise ValueError(
            f"verify: the export's tokenizer gives other ids from position {start} on ({theirs[start : start + 3]}; "
            f"the source gives {ours[start : start + 3]}) for {text[:60]!r}"
        )


def _verify_language(
    source: Source,
    reading: Reading,
    read_by: str,
    rendered: tuple[Sequence[Prompt], list[list[int]]],
    *,
    max_new_tokens: int,
    judge: Judge | None,
) -> Verification:
    network, tokenizer = cast(GPT, source.network), source.tokenizer
    prompts, ids = rendered
    greedy = responses(network, tokenizer, ids, max_new_tokens, temperature=0.0)  # 1
    sampled = responses(network, tokenizer, ids, max_new_tokens, temperature=1.0)
    largest, nll_source, nll_export, count = 0.0, 0.0, 0.0, 0
    for prompt, response in zip(ids, sampled.ids, strict=True):  # 3
        ours = torch.log_softmax(_logits(network, prompt + response, len(prompt)), -1)
        theirs = reading.logprobs(prompt + response, len(prompt))
        chosen = torch.arange(len(response)), torch.tensor(response)
        largest = max(largest, (ours - theirs).abs().nan_to_num(0.0).max().item())
        nll_source -= ours[chosen].sum().item()
        nll_export -= theirs[chosen].sum().item()
        count += len(response)
    context = network.config.context
    exported = [reading.respond(prompt, min(max_new_tokens, context - len(prompt))) for prompt in ids]  # 4
    return Verification(
        read_by=read_by,
        prompts=len(ids),
        tokens=count,
        max_difference=largest,
        perplexity_source=math.exp(nll_source / count),
        perplexity_export=math.exp(nll_export / count) if math.isfinite(nll_export) else math.inf,
        same_text=sum(ours == theirs for ours, theirs in zip(greedy.texts, exported, strict=True)),
        **(judged(judge, prompts, greedy.texts, exported) if judge else {}),
    )


def judged(judge: Judge, prompts: Sequence[Prompt], ours: list[str], theirs: list[str]) -> dict[str, float]:
    """A judge's mean rewards of two models' responses, and the share of prompts where ``theirs`` is better."""
    before, after = judge(prompts, ours), judge(prompts, theirs)
    wins = sum((b > a) + 0.5 * (b == a) for a, b in zip(before, after, strict=True))
    return {
        "reward_source": sum(before) / len(before),
        "reward_export": sum(after) / len(after),
        "win_rate": wins / len(before),
    }


def responses(
    network: GPT, tokenizer: Tokenizer, ids: list[list[int]], max_new_tokens: int, *, temperature: float
) -> Responses:
    """One response to each row of ``ids``."""
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=max_new_tokens)
    seeds = [response_seed(0, row) for row in range(len(ids))]
    return sample_responses(network, tokenizer, ids, sampling, seeds=seeds)


@torch.no_grad()
def _logits(network: GPT, ids: list[int], start: int) -> torch.Tensor:
    """``[N, V]`` float32: the logits that predict ``ids[start:]``."""
    return network(torch.tensor([ids]))[0, start - 1 : -1].float()


@torch.no_grad()
def _verify_scores(network: ScalarGPT, reading: Reading, read_by: str, ids: list[list[int]]) -> Verification:
    largest = 0.0
    for row in ids:
        ours = network.last_scores(torch.tensor([row]), torch.tensor([len(row)])).item()
        largest = max(largest, abs(ours - reading.score(row)))
    return Verification(read_by=read_by, prompts=len(ids), tokens=len(ids), max_difference=largest)


@dataclass(frozen=True)
class Tolerance:
    """Largest differences that pass; None: not checked."""

    difference: float | None = None
    """Largest difference of a log-probability (nats), or of a reward model's score"""
    perplexity: float | None = None
    """Relative rise of the perplexity: 0.01 is one percent"""
    reward: float | None = None
    """Drop of the judge's mean reward, relative to the source's"""


TOLERANCES = {
    "float32": Tolerance(0.01, 1e-3, 0.01),
    "float16": Tolerance(0.1, 0.005, 0.02),
    "bfloat16": Tolerance(1.0, 0.01, 0.02),
    "int8": Tolerance(1.0, 0.01, 0.02),
    "q8_0": Tolerance(1.0, 0.01, 0.02),
    "q5_1": Tolerance(None, 0.03, 0.05),
    "q5_0": Tolerance(None, 0.03, 0.05),
    "q4_1": Tolerance(None, 0.05, 0.1),
    "q4_0": Tolerance(None, 0.05, 0.1),
    "gptq": Tolerance(None, 0.05, 0.1),
    "awq": Tolerance(None, 0.05, 0.1),
}
"""By the precision of the matrices. Below 8 bits, log-probabilities of the tail move by nats without consequence.
A float32 GPT-2 in llama.cpp differs by some thousandths, because its GELU is a table of float16 values."""


def precision(settings: ExportSettings, dtype: str) -> str:
    """The row of ``TOLERANCES`` for an export.

    Args:
        settings: of the export.
        dtype: what ``auto`` stands for, such as ``float32``.
    """
    if settings.quantize != "none":
        # The weights that are not quantized may be coarser than int8.
        return settings.quantize
    found = dtype if settings.dtype == "auto" else settings.dtype
    return found if found in TOLERANCES else "float32"


def check(found: Verification, allowed: Tolerance) -> None:
    """Refuse an export that differs too much.

    Raises:
        ValueError: the message names the difference and the tolerance.
    """
    drop = None
    if found.reward_source is not None and found.reward_export is not None:
        drop = (found.reward_source - found.reward_export) / (abs(found.reward_source) or 1.0)
    measured = {
        "max_difference": (found.max_difference, allowed.difference, "--tolerance_difference"),
        "perplexity_change": (found.perplexity_change, allowed.perplexity, "--tolerance_perplexity"),
        "drop of the reward": (drop, allowed.reward, "--tolerance_reward"),
    }
    for name, (value, limit, setting) in measured.items():
        # NaN must not pass.
        if value is not None and limit is not None and not value <= limit:
            raise ValueError(
                f"verify: {name} is {value:.4g}, above the tolerance {limit:g} ({found.read_by}, {found.prompts} "
                f"prompts): nothing was written; {setting} sets another"
            )
