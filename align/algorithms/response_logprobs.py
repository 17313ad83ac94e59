"""Log-probs of responses under one network.

Legend: R rows, T tokens of a row.
"""

import torch

from align.batches import ResponseRows
from align.model.gpt import GPT
from align.model.packing import share_responses
from align.objectives import sequence_logprobs, token_logprobs


def response_logprobs(network: GPT, rows: ResponseRows, *, shared_prefix: bool) -> torch.Tensor:
    """Log-prob of each response under one network, summed over its tokens.

    No other position reaches the output matrix.

    Args:
        network: policy or reference.
        rows: prompts and responses.
        shared_prefix: compute each distinct prompt and response once, without padding; equal up to floating-point
            rounding.

    Returns:
        ``[R]`` nats, at least float32; 0 on rows of padding.
    """
    ids, mask = rows.ids, rows.mask
    if not shared_prefix:
        hidden = network.hidden(ids[:, :-1])
        return sequence_logprobs(hidden, network.output_weight, ids, mask, softcap=network.softcap)
    # The last token of a row predicts nothing.
    distinct = share_responses(ids, (rows.lengths - 1).clamp(min=0), rows.prompt_lengths)
    mask = mask.new_zeros(len(distinct.ids), ids.shape[1]).index_copy_(0, distinct.row_of, mask)[:, 1:]
    # The state at position t predicts the token at t + 1.
    row, column = mask.nonzero(as_tuple=True)
    line, indices = distinct.rows.line(distinct.ids), distinct.rows.tokens_at(row, column)
    states = network.hidden(line, rows=distinct.rows, indices=indices)
    targets = distinct.ids[row, column + 1]
    logprobs = token_logprobs(states, network.output_weight, targets, softcap=network.softcap)
    return logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs).sum(1)[distinct.row_of]
