"""Log-likelihoods of continuations: what multiple-choice tasks and perplexities are made of.

Requests that share a beginning (the endings of one question, questions after the same examples) are computed as one
packed sequence in which the shared beginning stands once, and only positions that predict a continuation reach the
output matrix.

Legend: R rows, N tokens of the packed sequence, V vocabulary, M predicting positions.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from align.model.gpt import GPT
from align.model.packing import share_prefixes
from align.objectives.chunks import cap_logits, chunk_buffer, chunk_size, logits_into

_PACKED_TOKENS = {"cpu": 2048}
"""Distinct tokens of a batch: more overflow a CPU's caches"""

_PACKED_TOKENS_ELSEWHERE = 32768

_ATTENDED = 4
"""Positions of a batch that attention computes, shared beginnings and padding included, per distinct token"""


_Row = tuple[int, ...]


class Continuation(NamedTuple):
    """Tokens whose likelihood is asked for.

    Attributes:
        context: ids before them, at least one.
        ids: the tokens, at least one.
    """

    context: Sequence[int]
    ids: Sequence[int]


class Likelihood(NamedTuple):
    """Of a continuation.

    Attributes:
        logprob: log p(ids | context), nats.
        greedy: each token is the most likely one at its position, so greedy decoding would write the continuation.
    """

    logprob: float
    greedy: bool


@torch.no_grad()
def likelihoods(network: GPT, requests: Sequence[Continuation]) -> Iterator[tuple[int, Likelihood]]:
    """The likelihood of every continuation, as they are computed: not in the order of the requests.

    Every row of the output matrix counts in the softmax, padding too, as in transformers. A request that is longer than
    the context loses the start of its context.

    Args:
        network: in evaluation mode.
        requests: any number.

    Yields:
        tuple: index of the request, and its likelihood.

    Raises:
        ValueError: a context or a continuation is empty, or a continuation is longer than the network's context.
    """
    room = network.config.context + 1
    numbers_of: dict[_Row, list[int]] = {}
    for number, request in enumerate(requests):
        _check(number, request, network.config.context)
        # The last token predicts nothing, so requests that differ only there are one row.
        numbers_of.setdefault((*request.context, *request.ids)[-room:][:-1], []).append(number)
    device = network.output_weight.device
    most = _PACKED_TOKENS.get(device.type, _PACKED_TOKENS_ELSEWHERE)
    for rows in _batches(sorted(numbers_of), most=most):
        numbers = [number for row in rows for number in numbers_of[row]]
        counts = [(row, len(requests[number].ids)) for row, ids in enumerate(rows) for number in numbers_of[ids]]
        targets = [token for number in numbers for token in requests[number].ids]
        yield from zip(numbers, _likelihoods(network, rows, counts, targets), strict=True)


def _check(number: int, request: Continuation, context: int) -> None:
    if not request.context or not request.ids:
        raise ValueError(f"request {number} has an empty {'context' if request.ids else 'continuation'}")
    if len(request.ids) > context:
        raise ValueError(
            f"the continuation of request {number} has {len(request.ids)} tokens, more than the context ({context})"
        )


def _batches(rows: Sequence[_Row], *, most: int) -> Iterator[list[_Row]]:
    """Adjacent rows whose packed sequence has at most ``most`` tokens, and at least one row.

    Args:
        rows: sorted, so that rows with the same beginning are adjacent.
        most: distinct tokens of a batch.
    """
    batch: list[_Row] = []
    tokens = widest = 0
    for row in rows:
        new = len(row) - _shared(batch[-1], row) if batch else len(row)
        width = max(widest, len(row))
        if batch and (tokens + new > most or width * (len(batch) + 1) > _ATTENDED * most):
            yield batch
            batch, tokens, width, new = [], 0, len(row), len(row)
        batch.append(row)
        tokens, widest = tokens + new, width
    if batch:
        yield batch


def _shared(left: _Row, right: _Row) -> int:
    """Initial tokens that two rows share."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _owners(rows: Sequence[_Row]) -> tuple[list[int], list[int]]:
    """For each row the row whose beginning it shares, and how many tokens, so that the fewest are computed.

    Rows are split into groups of adjacent rows, and all rows of a group share with its first one.
    """
    alike = [_shared(left, right) for left, right in zip(rows[:-1], rows[1:], strict=True)]
    best, first = [0.0] + [float("inf")] * len(rows), [0] * (len(rows) + 1)
    for start, row in enumerate(rows):
        cost, common = best[start] + len(row), len(row)
        for stop in range(start + 1, len(rows) + 1):
            if cost < best[stop]:
                best[stop], first[stop] = cost, start
            if stop == len(rows):
                break
            common = min(common, alike[stop - 1])
            if not common:
                break
            cost += len(rows[stop]) - common
    owners, prefixes = [0] * len(rows), [0] * len(rows)
    stop = len(rows)
    while stop:
        start = first[stop]
        common = len(rows[start])
        for number in range(start, stop):
            owners[number] = start
            if number > start:
                common = min(common, alike[number - 1])
                prefixes[number] = common
        stop = start
    return owners, prefixes


def _likelihoods(
    network: GPT, rows: Sequence[_Row], counts: Sequence[tuple[int, int]], targets: Sequence[int]
) -> list[Likelihood]:
    """The likelihoods of a batch.

    Args:
        network: the model.
        rows: what the network reads.
        counts: of each continuation, its row and its number of tokens, which the last positions of the row predict.
        targets: the tokens of all continuations.
    """
    device = network.output_weight.device
    owners, prefixes = _owners(rows)
    lengths = [len(row) for row in rows]
    line = share_prefixes(*(torch.tensor(numbers, device=device) for numbers in (lengths, prefixes, owners)))
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    flat = [row * line.width + column for row, count in counts for column in range(lengths[row] - count, lengths[row])]
    places, place_of = line.token_at[torch.tensor(flat, device=device)].unique(return_inverse=True)
    hidden = network.hidden(line.line(ids.to(device)), rows=line, indices=places)
    logprobs, best = _predictions(network, hidden, place_of, torch.tensor(targets, device=device))
    found, begin = [], 0
    each, all_best = logprobs.tolist(), best.tolist()
    for _, count in counts:
        span = slice(begin, begin + count)
        found.append(Likelihood(math.fsum(each[span]), all(all_best[span])))
        begin += count
    return found


def _predictions(
    network: GPT, hidden: torch.Tensor, place_of: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of targets and whether each is the most likely token, without the logits of all positions at once.

    Args:
        network: the model.
        hidden: ``[M, D]``.
        place_of: ``[T]`` the position in ``hidden`` that predicts each target.
        targets: ``[T]`` ids.

    Returns:
        tuple: ``[T]`` nats, at least float32; ``[T]`` bool.
    """
    weight = network.output_weight
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    chunk = chunk_size(hidden.device)
    buffer = chunk_buffer(hidden, weight, chunk, dtype)
    logprobs = torch.empty(len(targets), dtype=dtype, device=hidden.device)
    best = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    order = place_of.argsort(stable=True)
    ends = torch.searchsorted(place_of[order], torch.arange(0, len(hidden) + chunk, chunk, device=hidden.device))
    with torch.autocast(hidden.device.type, enabled=False):
        matrix = weight.to(hidden.dtype)
        for number, start in enumerate(range(0, len(hidden), chunk)):
            logits = logits_into(buffer, hidden[start : start + chunk], matrix)
            cap_logits(logits, network.softcap)
            asked = order[int(ends[number]) : int(ends[number + 1])]
            rows, wanted = place_of[asked] - start, targets[asked]
            logprobs[asked] = logits[rows, wanted] - logits.logsumexp(-1)[rows]
            best[asked] = logits.argmax(-1)[rows] == wanted
    return logprobs, best
