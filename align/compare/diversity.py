"""How much answers differ from each other."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_BLEU_PROMPTS = 50
"""Prompts whose answers self-BLEU reads: it takes 7 ms an answer"""


class Diversity(NamedTuple):
    """All in [0, 1].

    Attributes:
        distinct_1: different words over all words of all answers (Li et al. 2016).
        distinct_2: the same of pairs of neighbouring words.
        distinct_texts: different answers over all answers.
        self_bleu: mean BLEU-4 of each answer against the others to its prompt (Zhu et al. 2018), of the first 50
            prompts; 1 if all say the same; None with one answer a prompt.
    """

    distinct_1: float
    distinct_2: float
    distinct_texts: float
    self_bleu: float | None


def diversity(answers: Sequence[Sequence[str]]) -> Diversity:
    """Diversity of answers, ``P`` prompts by ``N``; words are what spaces part.

    Args:
        answers: to each prompt.
    """
    texts = [text for row in answers for text in row]
    words = [text.split() for text in texts]
    return Diversity(_distinct(words, 1), _distinct(words, 2), len(set(texts)) / len(texts), _self_bleu(answers))


def _distinct(words: Sequence[Sequence[str]], n: int) -> float:
    runs: Counter[tuple[str, ...]] = Counter()
    for text in words:
        runs.update(zip(*(text[start:] for start in range(n)), strict=False))
    return len(runs) / total if (total := runs.total()) else 0.0


def _self_bleu(answers: Sequence[Sequence[str]]) -> float | None:
    from torchmetrics.functional.text import bleu_score

    found = [
        float(bleu_score([row[i]], [[other for j, other in enumerate(row) if j != i]], smooth=True))
        for row in answers[:_BLEU_PROMPTS]
        if len(row) > 1
        for i in range(len(row))
    ]
    return sum(found) / len(found) if found else None
