"""The loss of a language model on whole documents, teacher-forced, in windows of its context."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from align.generation.likelihood import Continuation, likelihoods
from align.model.gpt import GPT
from align.tokenizer import Tokenizer


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


def windows(
    ids: Sequence[int], opening: Sequence[int], context: int, *, stride: int | None = None
) -> Iterator[Continuation]:
    """Split a document into windows in which every token is counted once.

    The first window begins with the opening tokens. Where a tokenizer has none, it begins with the first token, which
    nothing predicts.

    Args:
        ids: tokens of the document.
        opening: tokens that the tokenizer itself puts before a document.
        context: most positions that the network reads.
        stride: tokens that every window but the first counts; what fits before them is read as their context. None: the
            context, so that windows don't overlap, except that the last one too is as long as the context.

    Raises:
        ValueError: stride is not from 1 to the context.
    """
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"stride is {stride}; it must be from 1 to the context, {context} tokens")
    whole = [*(opening or ids[:1]), *(ids if opening else ids[1:])]
    begin = len(opening) or 1
    counted = context + 1 - begin
    while begin < len(whole):
        end = min(len(whole), begin + counted)
        yield Continuation(whole[max(0, end - context - 1) : begin], whole[begin:end])
        begin, counted = end, stride


def text_losses(
    network: GPT, tokenizer: Tokenizer, texts: Sequence[str], *, stride: int | None = None
) -> list[TextLoss]:
    """The losses of ``P`` documents.

    Every row of the output matrix counts in the softmax, padding too, as in transformers.

    Args:
        network: in evaluation mode.
        tokenizer: its own.
        texts: the documents.
        stride: see ``windows``.
    """
    opening, context = tokenizer.opening_ids, network.config.context
    encoded = [tokenizer.encode(text) for text in texts]
    owned = [(i, window) for i, ids in enumerate(encoded) for window in windows(ids, opening, context, stride=stride)]
    nats = np.zeros(len(texts))
    for number, likelihood in likelihoods(network, [window for _, window in owned]):
        nats[owned[number][0]] -= likelihood.logprob
    losses = []
    for text, ids, loss in zip(texts, encoded, nats.tolist(), strict=True):
        first = 0 if opening or not ids else int(tokenizer.token_bytes[ids[0]])
        losses.append(TextLoss(loss, len(ids) if opening else max(0, len(ids) - 1), len(text.encode()) - first))
    return losses
