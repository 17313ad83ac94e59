"""Judges: they score single responses, or compare two.

Legend: S seeds, P prompts, N responses to a prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from align.compare.respond import Response
from align.io.log import Log, key_of
from align.io.manifest import scores_fingerprint
from align.rewards.functions import SHORT_NAMES, code_fingerprint, load_reward, part_names
from align.rewards.reward import Reward
from align.rewards.reward_model import RewardModel
from align.rewards.weighted_sum import WeightedSum
from align.tokenizer.prompts import Columns, Prompt

_SCORED = 256
"""Responses that are scored at a time and then logged"""


class Judge(NamedTuple):
    """A named judge: one source for all seeds, or one per seed.

    Attributes:
        name: of the judge in reports.
        sources: rewards by name (see ``load_reward``), or ``http://HOST/v1#MODEL`` for an OpenAI-compatible endpoint
            that compares two responses.
    """

    name: str
    sources: tuple[str, ...]

    @property
    def compares(self) -> bool:
        """Whether it compares two responses instead of scoring each."""
        return self.sources[0].startswith(("http://", "https://"))

    def parts(self) -> list["Judge"]:
        """A judge for each part, if the sources are a ``WeightedSum``; none otherwise.

        Raises:
            ValueError: there is no such reward.
        """
        return [
            Judge(f"{self.name}/{name}", tuple(f"{source}#{name}" for source in self.sources))
            for name in part_names(self.sources[0])
        ]


def score(
    judge: Judge,
    seed: int,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    *,
    columns: Sequence[Columns],
    folder: Path,
    device: str = "cpu",
) -> np.ndarray:
    """``[P, N]`` scores of responses.

    Scores of a reward model and of a user's code are logged, so that a judge that fails midway resumes there.

    Args:
        judge: one that scores.
        seed: number of the seed, for a judge with one source per seed.
        prompts: ``P``.
        responses: ``P`` rows of ``N``.
        columns: ``P`` records, the columns that the judge reads.
        folder: of the logs.
        device: of a reward model, in torch's notation.

    Raises:
        ValueError: there is no such reward, or it failed; the line names it and the response.
    """
    source = judge.sources[seed % len(judge.sources)]
    reward = load_reward(source, device=device)
    asked = [prompt for prompt, row in zip(prompts, responses, strict=True) for _ in row]
    texts = [response.text for row in responses for response in row]
    read = [{name: record[name] for name in reward.columns if name in record} for record in columns]
    records = [record for record, row in zip(read, responses, strict=True) for _ in row]
    identity = _identity(reward, source, device)
    if identity is None:
        scores = reward(asked, texts, records)
    else:
        log = Log(folder / f"scores-{key_of(identity, asked, texts, records)}.jsonl")
        while (start := len(log)) < len(texts):
            chunk = slice(start, start + _SCORED)
            log.append(reward(asked[chunk], texts[chunk], records[chunk]))
        scores = list(log)
    return np.array(scores, dtype=np.float64).reshape(len(responses), -1)


def _identity(reward: Reward, source: str, device: str) -> str | None:
    """What a judge's scores depend on; None if they are not logged."""
    if reward in SHORT_NAMES.values():
        return None  # scoring again is quicker than reading a log
    if isinstance(reward, RewardModel):
        return f"{scores_fingerprint(reward.name)} {torch.device(device).type}"
    if isinstance(reward, WeightedSum):
        parts = {name: _identity(part, name, device) for name, part in reward.rewards.items()}
        described = [(name, part.weight, repr(part.reward), parts[name]) for name, part in reward.parts.items()]
        return repr(described) if any(parts.values()) else None
    code = code_fingerprint(reward)
    return code and f"{source} {code}"
