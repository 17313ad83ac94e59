"""What a network gives each answer of a batch of pairs.

Legend: B pairs, T tokens of a row, V vocabulary.
"""

import torch

from align.batches import PairBatch
from align.model import GPT, share_pairs
from align.objectives import sequence_logprobs, token_logprobs


def pair_logprobs(network: GPT, batch: PairBatch, *, shared_prefix: bool) -> torch.Tensor:
    """Summed log-probs of each row's answer. Logits are made at its tokens only.

    Args:
        network: policy or reference.
        batch: pairs.
        shared_prefix: compute each prompt once for both answers, and no padding; the same numbers to rounding.

    Returns:
        ``[2B]`` nats, at least float32: B chosen, then B rejected; 0 on rows of padding.
    """
    ids, mask = batch.ids, batch.mask
    if not shared_prefix:
        return sequence_logprobs(network.hidden(ids[:, :-1]), network.output_weight, ids, mask)
    # The last token of a row predicts nothing.
    rows = share_pairs(ids, (batch.lengths - 1).clamp(min=0))
    hidden = network.hidden(rows.line(ids), rows=rows)[0]
    # The state at place t predicts the token at t + 1.
    row, column = mask[:, 1:].nonzero(as_tuple=True)
    logprobs = token_logprobs(hidden[rows.tokens_at(row, column)], network.output_weight, ids[row, column + 1])
    return logprobs.new_zeros(mask.shape).masked_scatter(mask & _not_first(mask), logprobs).sum(1)


def _not_first(mask: torch.Tensor) -> torch.Tensor:
    """``[T]`` bool, False in column 0, which nothing predicts."""
    return torch.arange(mask.shape[1], device=mask.device) > 0
