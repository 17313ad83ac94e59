"""Rows for added tokens in the embedding and the output matrix.

Legend: V vocabulary, D width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from align.model.gpt import GPT


@torch.no_grad()
def extend_vocabulary(network: GPT, *, known: Sequence[int], added: Sequence[int]) -> None:
    """Give added tokens rows that are the mean of those of known tokens, so that they start as an average token.

    Rows that the matrices have beyond the known ids (padded vocabularies) are used first; the matrices grow only if
    there are too few. transformers' ``resize_token_embeddings`` initialises new rows to the same mean, plus noise of a
    thousandth of the rows' deviation (Hewitt 2021, "Initializing New Word Embeddings").

    Args:
        network: changed in place; its config gets the new ``vocab_size``.
        known: ids of the tokens that the network was trained with.
        added: ids of the new tokens.

    Raises:
        ValueError: an added id is known, or negative.
    """
    if clash := set(known) & set(added) or {number for number in added if number < 0}:
        raise ValueError(f"added ids must be new and at least 0, but {min(clash)} is not")
    rows = max([network.config.vocab_size, *(number + 1 for number in added)])
    for module in (network.model.embed_tokens, network.lm_head):
        if module is None:
            continue
        old = module.weight
        weight = old.new_zeros(rows, old.shape[1])
        weight[: len(old)] = old
        weight[list(added)] = old[list(known)].double().mean(0).to(old.dtype)
        module.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    network.model.embed_tokens.num_embeddings = rows
    if network.lm_head is not None:
        network.lm_head.out_features = rows
    network.config = network.model.config = replace(network.config, vocab_size=rows)
