"""What a network gives each answer of a batch of pairs.

Legend: B pairs, T tokens of a row, V vocabulary.
"""

import torch

from align.batches import PairBatch
from align.model import GPT, share_answers
from align.objectives import sequence_logprobs, token_logprobs


def pair_logprobs(network: GPT, batch: PairBatch, *, shared_prefix: bool) -> torch.Tensor:
    """Summed log-probs of each row's answer. Logits are made at its tokens only.

    Args:
        network: policy or reference.
        batch: pairs.
        shared_prefix: compute each prompt once, each answer once for all its pairs, and no padding; the same numbers
            to rounding.

    Returns:
        ``[2B]`` nats, at least float32: B chosen, then B rejected; 0 on rows of padding.
    """
    ids, mask = batch.ids, batch.mask
    if not shared_prefix:
        return sequence_logprobs(network.hidden(ids[:, :-1]), network.output_weight, ids, mask)
    # The last token of a row predicts nothing.
    distinct = share_answers(ids, (batch.lengths - 1).clamp(min=0), batch.prompt_lengths.repeat(2))
    mask = mask.new_zeros(len(distinct.ids), ids.shape[1]).index_copy_(0, distinct.place, mask)[:, 1:]
    # The state at place t predicts the token at t + 1.
    row, column = mask.nonzero(as_tuple=True)
    line, places = distinct.rows.line(distinct.ids), distinct.rows.tokens_at(row, column)
    states = network.hidden(line, rows=distinct.rows, places=places)
    logprobs = token_logprobs(states, network.output_weight, distinct.ids[row, column + 1])
    return logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs).sum(1)[distinct.place]
