"""What alignment cost: the loss of a language model on ordinary documents, logged."""

from collections.abc import Sequence
from pathlib import Path

import torch

from align.compare.candidates import Point
from align.compare.respond import Advance
from align.evaluate.text_loss import TextLoss, text_losses
from align.io.log import Log, key_of
from align.tokenizer import Tokenizer

_LOGGED = 16
"""Documents that are read at a time and then logged"""


def logged_text_losses(
    point: Point, texts: Sequence[str], *, folder: Path, device: str, advance: Advance
) -> list[TextLoss]:
    """``P`` losses of the documents.

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
    facts = [point.fingerprint(), tokenizer.fingerprint, list(texts), torch.device(device).type, "last window is full"]
    log = Log(folder / f"texts-{key_of(*facts)}.jsonl")
    advance(len(log))
    if len(log) < len(texts):
        network = point.load(device)
        while (start := len(log)) < len(texts):
            batch = texts[start : start + _LOGGED]
            log.append(text_losses(network, tokenizer, batch))
            advance(len(batch))
    losses = [TextLoss(*fields) for fields in log]
    if not sum(loss.tokens for loss in losses):
        raise ValueError(f"the texts are too short for {point.model}: no document has a token after the first")
    return losses
