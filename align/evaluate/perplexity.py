"""Perplexity and bits per byte of ordinary documents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from align.evaluate.result import Measure, Result
from align.evaluate.statistics import ratio_values
from align.evaluate.task import EvalTask, Subject
from align.evaluate.text_loss import TextLoss, text_losses
from align.io.log import Log, key_of
from align.io.progress import progress_bar

_LOGGED = 16
"""Documents that are read at a time and then logged"""


@dataclass(frozen=True)
class Perplexity(EvalTask):
    """Bits per byte, and perplexity per token, of documents."""

    texts: Sequence[str]
    """The documents"""
    stride: int | None = None
    """Tokens that a window counts after the context it reads; null: the context, and only the last window overlaps"""

    def run(self, subject: Subject, *, limit: int | None) -> Result:
        """See ``EvalTask``."""
        texts = list(self.texts[:limit])
        losses = self._losses(subject, texts)
        nats, tokens, sizes = (np.array(column, float) for column in zip(*losses, strict=True))
        if not tokens.sum():
            raise ValueError(
                f"the texts are too short for {subject.directory}: no document has a token after the first"
            )
        bits = Measure.of_items(
            "bits_per_byte,none", ratio_values(nats[None], sizes[None])[0] / math.log(2), higher_is_better=False
        )
        mean = Measure.of_items(
            "nats_per_token,none", ratio_values(nats[None], tokens[None])[0], higher_is_better=False
        )
        # The interval of the perplexity is that of its logarithm, the measure above.
        stderr = None if mean.stderr is None else math.exp(mean.value) * mean.stderr
        perplexity = Measure("token_perplexity,none", math.exp(mean.value), stderr, False, None)
        items = [{"doc_id": number, **loss._asdict()} for number, loss in enumerate(losses)]
        return Result(self.name, [bits, mean, perplexity], items, {"stride": self.stride, "documents": len(texts)})

    def _losses(self, subject: Subject, texts: Sequence[str]) -> list[TextLoss]:
        facts = [subject.fingerprint, subject.tokenizer.fingerprint, texts, self.stride]
        log = Log(subject.folder / f"perplexity-{key_of(*facts, torch.device(subject.device).type)}.jsonl")
        with progress_bar("documents", len(texts)) as advance:
            advance(len(log))
            while (start := len(log)) < len(texts):
                batch = texts[start : start + _LOGGED]
                log.append(text_losses(subject.network, subject.tokenizer, batch, stride=self.stride))
                advance(len(batch))
        return [TextLoss(*fields) for fields in log]
