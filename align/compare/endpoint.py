"""A language model behind an OpenAI-compatible endpoint as the judge of pairs of responses.

Each pair is shown in both orders, as such judges favour a position (Zheng et al. 2023): a wins where both say so, and
where they disagree it is a tie.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.compare.respond import Advance, Response
from align.io.log import Log, key_of
from align.rewards.reward import shown
from align.tokenizer.prompts import Prompt, as_text

KEY = "ALIGN_JUDGE_KEY"
"""Environment variable with the endpoint's API key, if it needs one"""
_INSTRUCTION = """You compare two responses to the same request. Judge only how well each does what the request asks.

Request:
{prompt}

Response A:
{a}

Response B:
{b}

Say which response is better. Reply with exactly one word: A, B or tie."""
_VERDICT = re.compile(r"\W*(?:(?:response|answer)\s+)?(A|B|tie)\W*", re.IGNORECASE)
_TRIES = 3
_GROUP = 8
"""Pairs that are judged at a time and then logged"""


class Endpoint(NamedTuple):
    """A model behind an endpoint.

    Attributes:
        url: base URL, up to ``/v1``.
        model: its name there.
    """

    url: str
    model: str

    @classmethod
    def parse(cls, source: str) -> "Endpoint":
        """Read ``http://HOST/v1#MODEL``.

        Raises:
            ValueError: the model is missing.
        """
        url, hash_, model = source.partition("#")
        if not hash_ or not model:
            raise ValueError(f"judge {source!r}: an endpoint is http://HOST/v1#MODEL, the model's name is missing")
        return cls(url, model)


def compare_pairs(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    a: Sequence[Response],
    b: Sequence[Response],
    *,
    folder: Path,
    advance: Advance,
) -> np.ndarray:
    """``[P]``: 1 where a's response is better, 0 where b's is, 1/2 for a tie.

    Args:
        endpoint: the judge.
        prompts: ``P``.
        a: one response to each.
        b: one response to each.
        folder: of the log, from which a judge that failed midway resumes.
        advance: called with the number of pairs of each batch.

    Raises:
        ValueError: it cannot be reached, refuses, or does not reply A, B or tie in three tries.
    """
    texts = [(as_text(prompt), one.text, other.text) for prompt, one, other in zip(prompts, a, b, strict=True)]
    log = Log(folder / f"verdicts-{key_of(endpoint, _INSTRUCTION, texts)}.jsonl")
    client = _client(endpoint)
    advance(len(log))
    while (start := len(log)) < len(texts):
        group = texts[start : start + _GROUP]
        log.append([_both_orders(client, endpoint, *pair) for pair in group])
        advance(len(group))
    return np.array(list(log), dtype=np.float64)


def _client(endpoint: Endpoint) -> Any:
    try:
        from openai import OpenAI
    except ModuleNotFoundError as error:
        raise ValueError(
            "an endpoint as judge needs the openai package: pip install 'lightning-align[judge]'"
        ) from error
    return OpenAI(base_url=endpoint.url, api_key=os.environ.get(KEY, "none"), timeout=60.0, max_retries=_TRIES)


def _both_orders(client: Any, endpoint: Endpoint, prompt: str, a: str, b: str) -> float:
    first = _ask(client, endpoint, prompt, a, b)
    second = 1.0 - _ask(client, endpoint, prompt, b, a)
    return first if first == second else 0.5


def _ask(client: Any, endpoint: Endpoint, prompt: str, a: str, b: str) -> float:
    from openai import OpenAIError

    message = _INSTRUCTION.format(prompt=prompt, a=a, b=b)
    text = ""
    for _ in range(_TRIES):
        try:
            reply = client.chat.completions.create(
                model=endpoint.model, messages=[{"role": "user", "content": message}], temperature=0, max_tokens=8
            )
        except OpenAIError as error:
            raise ValueError(
                f"judge {endpoint.model} at {endpoint.url} failed on the pair for prompt {shown(prompt)}: "
                f"{' '.join(str(error).split())}; its verdicts so far are kept: run the same command again"
            ) from error
        text = reply.choices[0].message.content or ""
        if found := _VERDICT.fullmatch(text):
            return {"a": 1.0, "b": 0.0, "tie": 0.5}[found[1].lower()]
    raise ValueError(
        f"judge {endpoint.model} at {endpoint.url} replied {shown(text)} {_TRIES} times: it must say A, B or tie"
    )
