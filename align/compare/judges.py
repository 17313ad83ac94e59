"""Judges: what says which answer is better, by scores of single answers or by comparing two.

Legend: S seeds, P prompts, N answers to a prompt.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from align.compare.answers import Answer
from align.io.log import Log, key_of
from align.io.manifest import weights_fingerprint
from align.rewards.base import FunctionReward, Reward
from align.rewards.functions import load_reward
from align.tokenizer.prompts import Prompt

_SCORED = 256
"""Answers that are scored before the log is written"""


class Judge(NamedTuple):
    """A name and what scores, one for all seeds or one a seed.

    Attributes:
        name: of the judge in reports.
        sources: as ``load_reward`` takes them (``sandbox``, ``module:function``, a reward-model directory), or
            ``http://HOST/v1#MODEL`` for an OpenAI-compatible endpoint that compares two answers.
    """

    name: str
    sources: tuple[str, ...]

    @property
    def compares(self) -> bool:
        """Whether it compares two answers and gives no scores."""
        return self.sources[0].startswith(("http://", "https://"))


def score(
    judge: Judge,
    seed: int,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Answer]],
    *,
    folder: Path,
    device: str = "cpu",
) -> np.ndarray:
    """``[P, N]`` scores of answers.

    A reward model's and a function's scores are logged as they come: one that fails midway goes on where it stopped.

    Args:
        judge: one that scores.
        seed: number of the seed, for a judge with a source a seed.
        prompts: ``P``.
        answers: ``P`` rows of ``N``.
        folder: of the logs.
        device: where a reward model computes, as torch names it.

    Raises:
        ValueError: there is no such reward, or it failed; the line names it and the answer.
    """
    source = judge.sources[seed % len(judge.sources)]
    reward = load_reward(source, device=device)
    asked = [prompt for prompt, row in zip(prompts, answers, strict=True) for _ in row]
    texts = [answer.text for row in answers for answer in row]
    identity = _identity(reward, source, device)
    if identity is None:
        scores = reward(asked, texts)
    else:
        log = Log(folder / f"scores-{key_of(identity, asked, texts)}.jsonl")
        while (start := len(log)) < len(texts):
            log.append(reward(asked[start : start + _SCORED], texts[start : start + _SCORED]))
        scores = list(log)
    return np.array(scores, dtype=np.float64).reshape(len(answers), -1)


def _identity(reward: Reward, source: str, device: str) -> str | None:
    """What a judge's scores depend on; None for one so quick that its scores are not kept."""
    if source == "sandbox":
        return None
    if not isinstance(reward, FunctionReward):
        return f"{weights_fingerprint(source)} {torch.device(device).type}"
    try:
        return f"{source} {inspect.getsource(inspect.getmodule(reward.function) or reward.function)}"
    except (OSError, TypeError):
        return None
