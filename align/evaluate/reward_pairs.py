"""Accuracy of a reward model on pairs, by category, as on RewardBench (Lambert et al. 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from align.evaluate.result import Measure, Result
from align.evaluate.task import EvalTask, Subject
from align.io.log import Log, key_of
from align.io.progress import progress_bar
from align.rewards.reward_model import RewardModel
from align.tokenizer.prompts import Prompt, as_text

_LOGGED = 64
"""Pairs that are scored at a time and then logged"""


class RankedPair(NamedTuple):
    """A pair whose order is known.

    Attributes:
        prompt: text or messages.
        chosen: the better response.
        rejected: the other.
        category: group of the pair, RewardBench's ``subset``; empty: none.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    category: str


@dataclass(frozen=True)
class RewardPairs(EvalTask):
    """Share of pairs whose chosen response a reward model scores higher; equal scores count half."""

    pairs: Sequence[RankedPair]
    """At least one"""

    def run(self, subject: Subject, *, limit: int | None) -> Result:
        """See ``EvalTask``."""
        pairs = list(self.pairs[:limit])
        scores = np.array(self._scores(subject, pairs))
        right = 0.5 * (1 + np.sign(scores[:, 0] - scores[:, 1]))
        measures = [Measure.of_items("accuracy,none", right, higher_is_better=True)]
        categories = np.array([pair.category for pair in pairs])
        for category in dict.fromkeys(filter(None, categories.tolist())):
            found = right[categories == category]
            measures.append(Measure.of_items(f"accuracy,{category}", found, higher_is_better=True))
        items = [
            {"doc_id": number, "prompt": as_text(pair.prompt), "category": pair.category, "scores": row.tolist()}
            for number, (pair, row) in enumerate(zip(pairs, scores, strict=True))
        ]
        return Result(self.name, measures, items, {"pairs": len(pairs)})

    def _scores(self, subject: Subject, pairs: Sequence[RankedPair]) -> list[list[float]]:
        """Scores of chosen and rejected."""
        log = Log(subject.folder / f"pairs-{key_of(subject.fingerprint, [tuple(pair) for pair in pairs])}.jsonl")
        if len(log) < len(pairs):
            model = RewardModel.load(subject.directory)
            model.network.to(subject.device)
            with progress_bar("pairs", len(pairs)) as advance:
                advance(len(log))
                while (start := len(log)) < len(pairs):
                    batch = pairs[start : start + _LOGGED]
                    responses = [response for pair in batch for response in (pair.chosen, pair.rejected)]
                    found = model([pair.prompt for pair in batch for _ in range(2)], responses)
                    log.append([found[row : row + 2] for row in range(0, len(found), 2)])
                    advance(len(batch))
        return [list(row) for row in log]
