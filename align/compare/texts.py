"""What alignment cost: the loss of a language model on ordinary documents, teacher-forced.

Legend: S seeds, P documents.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from align.compare.candidates import Point
from align.compare.respond import Advance, logprobs
from align.io.log import Log, key_of
from align.model.gpt import GPT
from align.tokenizer import Tokenizer

_LOGGED = 16
"""Documents that are read at a time and then logged"""
_TOKENS = 8_192
"""Most tokens of a batch of windows, padding included"""


class TextLoss(NamedTuple):
    """The loss of one document.

    Attributes:
        nats: negative log-likelihood of the counted tokens.
        tokens: counted tokens: all but what stands for the beginning.
        bytes: UTF-8 bytes of the counted tokens.
    """

    nats: float
    tokens: int
    bytes: int


class Window(NamedTuple):
    """A part of a document that is read at once.

    Attributes:
        prompt: ids that are read and not counted.
        ids: ids that are counted.
    """

    prompt: list[int]
    ids: list[int]


def windows(ids: Sequence[int], opening: Sequence[int], context: int) -> Iterator[Window]:
    """Split a document into windows in which every token is counted once.

    The first window begins with the opening tokens. Where a tokenizer has none, it begins with the first token, which
    nothing predicts. Every further window begins with the last token of the one before.

    Args:
        ids: tokens of the document.
        opening: tokens that the tokenizer itself puts before a document.
        context: most positions that the network reads.
    """
    prompt = [*(opening or ids[:1])]
    place = 0 if opening else 1
    while place < len(ids):
        end = place + context + 1 - len(prompt)
        window = Window(prompt, [*ids[place:end]])
        yield window
        prompt, place = window.ids[-1:], end


def text_losses(point: Point, texts: Sequence[str], *, folder: Path, device: str, advance: Advance) -> list[TextLoss]:
    """``P`` losses of the documents.

    Every row of the output matrix counts in the softmax, padding too, as in transformers.

    Args:
        point: the weights.
        texts: ``P`` documents.
        folder: of the log, from which an interrupted comparison resumes.
        device: of the network, in torch's notation.
        advance: called with the number of documents of each batch.

    Raises:
        ValueError: the network cannot be loaded, or no document has a token that can be predicted.
    """
    tokenizer = Tokenizer.load(point.model)
    facts = [point.fingerprint(), tokenizer.fingerprint, list(texts), torch.device(device).type]
    log = Log(folder / f"texts-{key_of(*facts)}.jsonl")
    advance(len(log))
    if len(log) < len(texts):
        network = point.load(device)
        while (start := len(log)) < len(texts):
            batch = texts[start : start + _LOGGED]
            log.append(_losses(network, tokenizer, batch))
            advance(len(batch))
    losses = [TextLoss(*fields) for fields in log]
    if not sum(loss.tokens for loss in losses):
        raise ValueError(f"the texts are too short for {point.model}: no document has a token after the first")
    return losses


def _losses(network: GPT, tokenizer: Tokenizer, texts: Sequence[str]) -> list[TextLoss]:
    opening, context = tokenizer.opening_ids, network.config.context
    encoded = [tokenizer.encode(text) for text in texts]
    owned = [(i, window) for i, ids in enumerate(encoded) for window in windows(ids, opening, context)]
    nats = np.zeros(len(texts))
    for batch in _batches(owned, length=lambda of: len(of[1].prompt) + len(of[1].ids)):
        found = logprobs(network, [of.prompt for _, of in batch], [of.ids for _, of in batch])
        for (i, _), value in zip(batch, found.tolist(), strict=True):
            nats[i] -= value
    losses = []
    for text, ids, loss in zip(texts, encoded, nats.tolist(), strict=True):
        first = 0 if opening or not ids else int(tokenizer.token_bytes[ids[0]])
        losses.append(TextLoss(loss, len(ids) if opening else max(0, len(ids) - 1), len(text.encode()) - first))
    return losses


_Owned = tuple[int, Window]


def _batches(windows: Sequence[_Owned], *, length: Callable[[_Owned], int]) -> Iterator[list[_Owned]]:
    """Consecutive windows with at most ``_TOKENS`` tokens once they are padded, and at least one window."""
    batch: list[_Owned] = []
    longest = 0
    for window in windows:
        longest = max(longest, length(window))
        if batch and longest * (len(batch) + 1) > _TOKENS:
            yield batch
            batch, longest = [], length(window)
        batch.append(window)
    if batch:
        yield batch
