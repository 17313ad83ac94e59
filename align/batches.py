"""What data makes and stages consume.

Legend: B rows of a batch, T tokens of a row.
"""

from typing import NamedTuple

import torch


class TokenBatch(NamedTuple):
    """Rows of tokens with what counts in the loss.

    A row of T tokens holds T - 1 predictions: the network reads ``ids[:, :-1]`` and is asked for ``ids[:, 1:]``.
    The shift happens in the objective, nowhere else.

    Attributes:
        ids: ``[B, T]`` int64, right-padded.
        mask: ``[B, T]`` bool, True where the token counts as a target. ``mask[:, 0]`` is never read.
        positions: ``[B, T]`` int64, the token's position in its own document, or None for ``0..T-1`` in every row.
        documents: ``[B, T]`` int64, the number of the token's document within its row, -1 on padding. Attention
            stays inside a document. None means plain causal attention over the whole row.
        num_bytes: ``[B]`` int64, UTF-8 bytes of the tokens that count, for bits per byte.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor | None
    documents: torch.Tensor | None
    num_bytes: torch.Tensor
