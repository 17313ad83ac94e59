"""Verify an export: load it in the program it is for, and compare it with its source.

Legend: N tokens of a response, V vocabulary.

1. The export's tokenizer must give the source's ids for the prompts.
2. An adapter's source must compute what ``PeftModel`` computes over the adapter's own base.
3. The source responds to each prompt at temperature 1, with a fixed seed. Over the vocabulary at each position of these
   responses, the mean KL divergence of the export from two networks is measured: from the source (``kl``: what the
   export loses), and from the source with its weights rounded as the file stores them (``kl_rounded``: next to nothing
   in any precision, unless a tensor is wrong).
4. Both respond greedily, to all prompts if a judge compares the responses. Each token of the export's responses must
   be the likeliest by its own log-probabilities, and a response must end where one of the source's would. Settings
   such as a repetition penalty, which change greedy decoding, are switched off, and named in the result.
5. ``check`` refuses differences above a ``Tolerance``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol, cast

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


class Greedy(NamedTuple):
    """A greedy response.

    Attributes:
        ids: its tokens, with the one that ended it.
        text: the same without special tokens.
    """

    ids: list[int]
    text: str


class Reading(Protocol):
    """An export, loaded in the program it is for."""

    name: str
    """The program, with its version"""
    switched_off: dict[str, Any]
    """Settings of the export that change greedy decoding, which ``respond`` leaves out"""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text."""
        ...

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a chat up to the assistant's turn."""
        ...

    def logprobs(self, ids: list[int], start: int) -> torch.Tensor:
        """``[N, V]`` float32: of every token at the positions of ``ids[start:]``."""
        ...

    def respond(self, rows: list[list[int]], max_new_tokens: int) -> list[Greedy]:
        """The greedy response to each row of ids."""
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
    kl: float | None = None
    """KL(source || export) over the vocabulary, mean over positions, nats"""
    kl_rounded: float | None = None
    """The same from the source with its weights rounded as in the file"""
    top1: float | None = None
    """Share of positions where source and export give the largest probability to the same token"""
    score_difference: float | None = None
    """Largest difference of a reward model's score"""
    score_difference_rounded: float | None = None
    """The same from the source with its weights rounded as in the file"""
    peft: float | None = None
    """KL(peft || source), mean over positions, nats, or the largest difference of a score: of an adapter only"""
    perplexity_source: float | None = None
    """Of the source's sampled responses, under the source"""
    perplexity_export: float | None = None
    """Of the same responses, under the export"""
    responses: int | None = None
    """Prompts that both responded to greedily"""
    same_text: int | None = None
    """Of these, equal responses"""
    switched_off: str | None = None
    """Settings of the export that change greedy decoding and were left out, as ``name=value``"""
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


@dataclass(frozen=True)
class Compared:
    """What a source is compared with.

    Attributes:
        export: the export, loaded.
        rounded: the source with its weights rounded as the export stores them; None: they are not known.
        peft: the adapter that the source was merged from, loaded by peft over its base; None: it is no adapter.
    """

    export: Reading
    rounded: GPT | ScalarGPT | None = None
    peft: Reading | None = None


def verify(
    source: Source, compared: Compared, prompts: Sequence[Prompt], *, max_new_tokens: int, judge: Judge | None
) -> Verification:
    """Compare an export with its source.

    Args:
        source: what was exported.
        compared: the export, and what else the source is compared with.
        prompts: to respond to; a reward model scores them, including a response as the last message.
        max_new_tokens: maximum length of the responses that the judge compares, tokens; log-probabilities are compared
            over ``MEASURED`` tokens of each response at most.
        judge: gives responses a reward; None: compare a few short responses only.

    Raises:
        ValueError: no prompt leaves room for a response, the export's tokenizer gives other ids, or it responds with
            another text than its own log-probabilities give.
    """
    ids = [prompt_ids(source.tokenizer, prompt) for prompt in prompts]
    context = source.network.config.context
    most = longest(ids, max_new_tokens, context)
    fitting = [number for number, row in enumerate(ids) if len(row) < most]
    if not fitting:
        raise ValueError(f"no prompt is shorter than the context, {context} tokens: give shorter prompts")
    prompts, ids = [prompts[number] for number in fitting], [ids[number] for number in fitting]
    _check_tokens(source, compared.export, prompts)  # 1
    if isinstance(source.network, ScalarGPT):
        return _verify_scores(source.network, compared, ids)
    room = min(max_new_tokens, most - max(len(row) for row in ids))
    found = _verify_logprobs(source, compared, ids, min(room, MEASURED))
    return replace(found, **_verify_texts(source, compared.export, prompts, ids, max_new_tokens=room, judge=judge))


def longest(ids: Sequence[Sequence[int]], max_new_tokens: int, context: int) -> int:
    """Largest number of tokens of a prompt and its response, among the prompts that leave room for one."""
    return min(context, max((len(row) for row in ids if len(row) < context), default=context) + max_new_tokens)


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


def _verify_logprobs(source: Source, compared: Compared, ids: list[list[int]], max_new_tokens: int) -> Verification:
    network = cast(GPT, source.network)
    sampled = responses(network, source.tokenizer, ids, max_new_tokens, temperature=1.0)  # 3
    kl = {"kl": 0.0, "kl_rounded": 0.0, "peft": 0.0}
    nll_source = nll_export = agreeing = 0.0
    count = sum(len(response) for response in sampled.ids)
    for prompt, response in zip(ids, sampled.ids, strict=True):
        row, start = prompt + response, len(prompt)
        ours, theirs = logprobs(network, row, start), compared.export.logprobs(row, start)
        kl["kl"] += divergence(ours, theirs) / count
        if compared.rounded is not None:
            same = compared.rounded is network
            expected = ours if same else logprobs(cast(GPT, compared.rounded), row, start)
            kl["kl_rounded"] += divergence(expected, theirs) / count
        if compared.peft is not None:
            kl["peft"] += divergence(compared.peft.logprobs(row, start), ours) / count  # 2
        agreeing += (ours.argmax(-1) == theirs.argmax(-1)).sum().item()
        chosen = torch.arange(len(response)), torch.tensor(response)
        nll_source -= ours[chosen].sum().item()
        nll_export -= theirs[chosen].sum().item()
    return Verification(
        read_by=compared.export.name,
        prompts=len(ids),
        tokens=count,
        kl=kl["kl"],
        kl_rounded=None if compared.rounded is None else kl["kl_rounded"],
        peft=None if compared.peft is None else kl["peft"],
        top1=agreeing / count,
        perplexity_source=math.exp(nll_source / count),
        perplexity_export=math.exp(nll_export / count) if nll_export / count < 700 else math.inf,
    )


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL(p || q) in nats, summed over positions, of log-probabilities ``[N, V]``."""
    return (p.double().exp() * (p.double() - q.double())).sum().item()


MEASURED = 32
"""Tokens of each sampled response whose log-probabilities are compared"""
_UNJUDGED = 2
"""Prompts that are responded to greedily, with as many tokens, where no judge compares the responses"""


def _verify_texts(
    source: Source,
    reading: Reading,
    prompts: Sequence[Prompt],
    ids: list[list[int]],
    *,
    max_new_tokens: int,
    judge: Judge | None,
) -> dict[str, Any]:
    """Compare greedy responses."""
    if judge is None:
        ids, max_new_tokens = ids[:_UNJUDGED], min(max_new_tokens, MEASURED)
    ours = responses(cast(GPT, source.network), source.tokenizer, ids, max_new_tokens, temperature=0.0)  # 4
    theirs = reading.respond(ids, max_new_tokens)
    for prompt, response, text, other in zip(ids, ours.ids, ours.texts, theirs, strict=True):
        _check_greedy(reading, prompt, other, set(source.tokenizer.stop_ids), max_new_tokens)
        if other.ids == response and other.text != text:
            raise ValueError(f"verify: the export decodes {response[:8]} as {_shown(other.text)}, not {_shown(text)}")
    texts = [response.text for response in theirs]
    same = sum(text == other for text, other in zip(ours.texts, texts, strict=True))
    scores = judged(judge, prompts, ours.texts, texts) if judge else {}
    left_out = ", ".join(f"{name}={value}" for name, value in reading.switched_off.items())
    return {"responses": len(ids), "same_text": same, "switched_off": left_out or None, **scores}


_TIE = 0.1
"""Nats by which rounding can make another token the likeliest: batches and caches add in another order"""


def _check_greedy(reading: Reading, prompt: list[int], found: Greedy, stops: set[int], max_new_tokens: int) -> None:
    """Refuse a response that is not the export's greedy one, or ends elsewhere than one of the source's.

    The export's own log-probabilities are what it is held to, so that nothing depends on how sure it is.
    """
    logprobs = reading.logprobs(prompt + found.ids, len(prompt))
    behind = logprobs.max(-1).values - logprobs[torch.arange(len(found.ids)), torch.tensor(found.ids)]
    unlikely = [place for place, gap in enumerate(behind.tolist()) if not gap <= _TIE]
    if unlikely:
        token, likeliest = found.ids[unlikely[0]], logprobs[unlikely[0]].argmax().item()
        raise ValueError(
            f"verify: the export responds {_shown(found.text)}, whose token {unlikely[0]} is {token}, but its "
            f"log-probabilities give {likeliest}: check its generation settings"
        )
    ends = next((place for place, token in enumerate(found.ids, 1) if token in stops), max_new_tokens)
    if len(found.ids) != ends:
        raise ValueError(
            f"verify: the export's response {_shown(found.text)} ends after {len(found.ids)} tokens, with token "
            f"{found.ids[-1]}; the source's would end after {ends}: check its stop tokens"
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:40]}...{text[-20:]}")


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
def logprobs(network: GPT, ids: list[int], start: int) -> torch.Tensor:
    """``[N, V]`` float32: of every token at the positions of ``ids[start:]``."""
    hidden = network.hidden(torch.tensor([ids]))[0, start - 1 : -1]
    return torch.log_softmax(network.logits(hidden).float(), -1)


@torch.no_grad()
def _verify_scores(network: ScalarGPT, compared: Compared, ids: list[list[int]]) -> Verification:
    def scores(of: ScalarGPT) -> torch.Tensor:
        return torch.tensor([of.last_scores(torch.tensor([row]), torch.tensor([len(row)])).item() for row in ids])

    def largest(reference: torch.Tensor, reading: Reading) -> float:
        return (reference - torch.tensor([reading.score(row) for row in ids])).abs().max().item()

    ours = scores(network)
    return Verification(
        read_by=compared.export.name,
        prompts=len(ids),
        tokens=len(ids),
        score_difference=largest(ours, compared.export),
        score_difference_rounded=None
        if compared.rounded is None
        else largest(scores(cast(ScalarGPT, compared.rounded)), compared.export),
        peft=None if compared.peft is None else largest(ours, compared.peft),
    )


@dataclass(frozen=True)
class Tolerance:
    """Largest differences that pass; None: not checked."""

    kl: float | None = None
    """Of ``Verification.kl``, nats"""
    rounded: float | None = None
    """Of ``Verification.kl_rounded``, nats"""
    score: float | None = None
    """Of ``Verification.score_difference``"""
    perplexity: float | None = None
    """Relative rise of the perplexity: 0.01 is one percent"""
    reward: float | None = None
    """Drop of the judge's mean reward, relative to the source's"""


_LOSSES = {
    "float32": Tolerance(kl=1e-5, score=1e-3, perplexity=0.001, reward=0.01),
    "float16": Tolerance(kl=1e-4, score=0.1, perplexity=0.005, reward=0.02),
    "bfloat16": Tolerance(kl=2e-3, score=0.5, perplexity=0.01, reward=0.02),
    "int8": Tolerance(kl=0.03, score=0.5, perplexity=0.03, reward=0.02),
    "q8_0": Tolerance(kl=0.03, perplexity=0.03, reward=0.02),
    "q5_1": Tolerance(kl=0.5, reward=0.05),
    "q5_0": Tolerance(kl=0.5, reward=0.05),
    "q4_1": Tolerance(kl=1.0, reward=0.1),
    "q4_0": Tolerance(kl=1.0, reward=0.1),
    "gptq": Tolerance(kl=1.0, reward=0.1),
    "awq": Tolerance(kl=1.0, reward=0.1),
}
"""What an export may lose, by the precision of its matrices: docs/export.md has the measurements"""

_ROUNDED = {"float32": 1e-5, "float16": 1e-4, "bfloat16": 1e-3}
"""Largest ``kl_rounded`` in llama.cpp, which rounds activations to 16 bits beside such weights; a float32 GPT-2 differs
because its GELU is a table of float16 values"""

_ROUNDED_QUANTIZED = 0.01
"""Where llama.cpp rounds activations to 8 bits"""

_ROUNDED_HF = 1e-5
"""In transformers, which computes in float32"""

SCORE = 1e-3
"""Largest ``score_difference_rounded``"""

PEFT = 1e-4
"""Largest difference of an adapter's source from peft: of KL (nats), or of a score"""


def tolerance(settings: ExportSettings, dtype: str) -> Tolerance:
    """What an export may differ by.

    Args:
        settings: of the export.
        dtype: what ``auto`` stands for, such as ``float32``.
    """
    # The weights that are not quantized may be coarser than int8.
    name: str = settings.quantize
    if name == "none":
        name = dtype if settings.dtype == "auto" else settings.dtype
    losses = _LOSSES.get(name, _LOSSES["float32"])
    if settings.format == "hf":
        return replace(losses, rounded=_ROUNDED_HF)
    return replace(losses, rounded=_ROUNDED.get(name, _ROUNDED_QUANTIZED))


def check(found: Verification, allowed: Tolerance) -> None:
    """Refuse an export that differs too much.

    Raises:
        ValueError: the message names the difference and the tolerance.
    """
    drop = None
    if found.reward_source is not None and found.reward_export is not None:
        drop = (found.reward_source - found.reward_export) / (abs(found.reward_source) or 1.0)
    measured = {
        "peft": (found.peft, PEFT, "peft computes something else from this adapter; merge it with peft"),
        "kl_rounded": (found.kl_rounded, allowed.rounded, "--tolerance_rounded sets another"),
        "score_difference_rounded": (found.score_difference_rounded, SCORE, "a tensor is wrong"),
        "kl": (found.kl, allowed.kl, "--tolerance_kl sets another"),
        "score_difference": (found.score_difference, allowed.score, "--tolerance_score sets another"),
        "perplexity_change": (found.perplexity_change, allowed.perplexity, "--tolerance_perplexity sets another"),
        "drop of the reward": (drop, allowed.reward, "--tolerance_reward sets another"),
    }
    for name, (value, limit, advice) in measured.items():
        # NaN must not pass.
        if value is not None and limit is not None and not value <= limit:
            raise ValueError(
                f"verify: {name} is {value:.4g}, above the tolerance {limit:g} ({found.read_by}, {found.prompts} "
                f"prompts): nothing was written; {advice}"
            )
