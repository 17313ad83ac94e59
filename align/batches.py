"""What data makes and stages consume.

Legend: B rows (pairs, prompts) of a batch, T tokens of a row, P tokens of the longest prompt.
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


class PairBatch(NamedTuple):
    """Preference pairs: row b of the first half is the chosen answer to prompt b, row b of the second the rejected one.

    Attributes:
        ids: ``[2B, T]`` int64, prompt and response, right-padded: B rows of chosen, then B of rejected.
        mask: ``[2B, T]`` bool, True on the tokens of the response, the end of its turn included.
        lengths: ``[2B]`` int64, tokens of each row without padding; 0 on rows that only fill up the last batch.
        prompt_lengths: ``[B]`` int64, tokens of each prompt: the same in both halves.
        numbers: ``[B]`` int64, number of the pair within its split, -1 on padding.
        prompts: B texts, what each prompt asks (its last message), for reward functions; empty on padding.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    lengths: torch.Tensor
    prompt_lengths: torch.Tensor
    numbers: torch.Tensor
    prompts: tuple[str, ...]


class PromptBatch(NamedTuple):
    """Prompts to answer.

    Attributes:
        ids: ``[B, P]`` int64, rendered up to the assistant's turn, right-padded.
        lengths: ``[B]`` int64, tokens of each prompt; 0 on rows that only fill up the last batch.
        numbers: ``[B]`` int64, number of the prompt within its split, -1 on padding.
        prompts: B texts, what each prompt asks (its last message), for reward functions; empty on padding.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    numbers: torch.Tensor
    prompts: tuple[str, ...]
