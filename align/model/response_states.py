"""Hidden states that predict responses, computed almost without padding and with shared prompts computed once.

Legend: B rows, T tokens of a row, P tokens of a prompt, R rows of a chunk, M tokens of all responses, D width,
K key/value heads, E width of one head.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from align.model.gpt import GPT, ScalarGPT
from align.model.kv_cache import KVCache
from align.model.packing import share_prefixes

_CALL_TOKENS = {"cpu": 24}
"""Cost of one more forward pass, in tokens: decides how finely rows are chunked by length"""

_CALL_TOKENS_ELSEWHERE = 4096

_MOST_TOKENS = {"cpu": 2048}
"""Positions of a chunk, padding included: more overflow a CPU's caches"""

_MOST_TOKENS_ELSEWHERE = 32768


def response_tokens(ids: torch.Tensor, prompt_lengths: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    """The tokens of all responses, concatenated.

    Args:
        ids: ``[B, T]`` int64.
        prompt_lengths: B, tokens of each prompt.
        lengths: B, tokens of each row.

    Returns:
        ``[M]`` int64.
    """
    spans = list(zip(prompt_lengths, lengths, strict=True))
    return ids.flatten()[_flat_indices(spans, ids.shape[1], ids.device)]


def response_states(
    network: GPT | ScalarGPT,
    ids: torch.Tensor,
    prompt_lengths: Sequence[int],
    lengths: Sequence[int],
    *,
    group_size: int = 1,
) -> torch.Tensor:
    """The hidden state before each token of each response, in the order of ``response_tokens``.

    Rows of different length are computed as one packed sequence, without each row's last token, which predicts nothing.
    With groups, each prompt is computed once and its responses attend to it. A compiled network instead computes all
    rows padded, to have few shapes. A network that all ranks must run equally often packs everything into one sequence,
    and off the CPU groups are packed into as few sequences as fit.

    Args:
        network: a policy, reference or value model.
        ids: ``[B, T]`` int64, right-padded.
        prompt_lengths: B, tokens of each prompt, at least 1.
        lengths: B, tokens of each row, more than of its prompt.
        group_size: number of adjacent rows with the same prompt; divides B.

    Returns:
        ``[M, D]``.
    """
    if network.model.compiles:
        width = ids.shape[1] - 1
        spans = [(prompt - 1, length - 1) for prompt, length in zip(prompt_lengths, lengths, strict=True)]
        return network.hidden(ids[:, :width], indices=_flat_indices(spans, width, ids.device))
    if runs_in_step(network):
        return _packed_states(network, ids, prompt_lengths, lengths, group_size)
    if group_size == 1:
        spans = [(prompt - 1, length - 1) for prompt, length in zip(prompt_lengths, lengths, strict=True)]
        return _states(network, ids, spans)
    if ids.device.type != "cpu":
        return _chunked_states(network, ids, prompt_lengths, lengths, group_size)
    parts = [
        _group_states(network, ids[start : start + group_size], prompt_lengths[start], lengths[start:][:group_size])
        for start in range(0, len(lengths), group_size)
    ]
    return torch.cat(parts)


def _packed_states(
    network: GPT | ScalarGPT,
    ids: torch.Tensor,
    prompt_lengths: Sequence[int],
    lengths: Sequence[int],
    group_size: int,
) -> torch.Tensor:
    """``response_states`` in a single forward pass, whatever the lengths."""
    prompts, ends = (torch.tensor(counts, device=ids.device) for counts in (prompt_lengths, lengths))
    rows = torch.arange(len(ids), device=ids.device)
    line = share_prefixes(ends - 1, prompts, rows - rows % group_size)
    spans = [(prompt - 1, length - 1) for prompt, length in zip(prompt_lengths, lengths, strict=True)]
    indices = line.token_at[_flat_indices(spans, line.width, ids.device)]
    return network.hidden(line.line(ids), rows=line, indices=indices)


def _chunked_states(
    network: GPT | ScalarGPT,
    ids: torch.Tensor,
    prompt_lengths: Sequence[int],
    lengths: Sequence[int],
    group_size: int,
) -> torch.Tensor:
    """``response_states`` of groups, as many per forward pass as fit: off the CPU calls cost more than padding."""
    chunk_size = group_size * max(1, _MOST_TOKENS_ELSEWHERE // (group_size * ids.shape[1]))
    chunks = [slice(start, start + chunk_size) for start in range(0, len(ids), chunk_size)]
    parts = [_packed_states(network, ids[c], prompt_lengths[c], lengths[c], group_size) for c in chunks]
    return torch.cat(parts)


def chunk_rows(widths: Sequence[int], *, call_tokens: int, most_tokens: int) -> list[slice]:
    """Split rows into chunks that minimize padding plus the cost per chunk.

    Args:
        widths: tokens of each row, longest first.
        call_tokens: cost per chunk, in tokens.
        most_tokens: maximum positions of a chunk, unless it is a single row.

    Returns:
        list[slice]: of adjacent rows.
    """
    best, split = [0.0], [0]
    for stop in range(1, len(widths) + 1):
        costs = []
        for start in range(stop - 1, -1, -1):
            size = (stop - start) * widths[start]
            if size > most_tokens and start < stop - 1:
                break
            costs.append((best[start] + size + call_tokens, start))
        cost, start = min(costs)
        best.append(cost)
        split.append(start)
    chunks, stop = [], len(widths)
    while stop:
        chunks.append(slice(split[stop], stop))
        stop = split[stop]
    return chunks[::-1]


def _states(
    network: GPT | ScalarGPT, ids: torch.Tensor, spans: Sequence[tuple[int, int]], prompt: "_Prompt | None" = None
) -> torch.Tensor:
    """Hidden states at positions ``spans`` of each row, row after row; the rows follow ``prompt`` if there is one."""
    device = ids.device
    order = sorted(range(len(spans)), key=lambda row: -spans[row][1])
    widths = [spans[row][1] for row in order]
    most_tokens = _MOST_TOKENS.get(device.type, _MOST_TOKENS_ELSEWHERE)
    # In a packed sequence only attention has padding, so use as few calls as possible.
    call_tokens = most_tokens if prompt is None else _CALL_TOKENS.get(device.type, _CALL_TOKENS_ELSEWHERE)
    parts = []
    for chunk in chunk_rows(widths, call_tokens=call_tokens, most_tokens=most_tokens):
        rows, width = order[chunk], widths[chunk.start]
        if not width:
            continue
        whole = len(rows) == len(ids) and rows == list(range(len(ids)))
        read = (ids if whole else ids[torch.tensor(rows, device=device)])[:, :width]
        indices = _flat_indices([spans[row] for row in rows], width, device)
        if prompt is not None:
            continuation = _Continuation(prompt, width)
            positions = torch.arange(prompt.length, continuation.length, device=device)
            parts.append(network.hidden(read, positions=positions, cache=continuation, indices=indices))
        elif widths[chunk.stop - 1] == width:
            parts.append(network.hidden(read, indices=indices))
        else:
            ends = torch.tensor(widths[chunk], device=device)
            line = share_prefixes(ends, ends, torch.arange(len(rows), device=device))
            parts.append(network.hidden(line.line(read), rows=line, indices=line.token_at[indices]))
    states = torch.cat(parts) if len(parts) > 1 else parts[0]
    if order == sorted(order):
        return states
    # Restore the order of the rows.
    counts = [end - begin for begin, end in spans]
    begins, total = {}, 0
    for row in order:
        begins[row] = total
        total += counts[row]
    back = [i for row, count in enumerate(counts) for i in range(begins[row], begins[row] + count)]
    return states[torch.tensor(back, device=device)]


def _group_states(
    network: GPT | ScalarGPT, ids: torch.Tensor, prompt_length: int, lengths: Sequence[int]
) -> torch.Tensor:
    """``response_states`` of rows that share their prompt."""
    prompt = _Prompt(prompt_length)
    positions = torch.arange(prompt_length, device=ids.device)
    last = network.hidden(ids[:1, :prompt_length], positions=positions, cache=prompt)[0, -1:]
    counts = [length - prompt_length for length in lengths]
    # The first token of a response is predicted by the prompt's last; a response's own last predicts nothing.
    spans = [(0, count - 1) for count in counts]
    if not any(count - 1 for count in counts):
        return last.expand(len(counts), -1)
    states = _states(network, ids[:, prompt_length:], spans, prompt)
    own = torch.cat([last, states])
    indices, begin = [], 1
    for count in counts:
        indices += [0, *range(begin, begin + count - 1)]
        begin += count - 1
    return own[torch.tensor(indices, device=ids.device)]


def _flat_indices(spans: Sequence[tuple[int, int]], width: int, device: torch.device) -> torch.Tensor:
    """Flat indices of positions ``begin..end`` of each row of ``width``."""
    flat = [i for row, (begin, end) in enumerate(spans) for i in range(row * width + begin, row * width + end)]
    return torch.tensor(flat, dtype=torch.int64, device=device)


class _Prompt(KVCache):
    """Keys and values of one prompt, with their autograd graph."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def length(self) -> int:
        """Maximum number of slots that a row sees."""
        return self._length

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, *, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values ``[1, K, P, E]`` of the first call; a recomputed block's have no graph."""
        self.kept.setdefault(layer, (keys, values))
        return keys, values


class _Continuation(KVCache):
    """What ``width`` tokens after a prompt see; stores nothing, so a block may be recomputed."""

    def __init__(self, prompt: _Prompt, width: int) -> None:
        self.prompt, self.width = prompt, width

    @property
    def length(self) -> int:
        """Maximum number of slots that a row sees."""
        return self.prompt.length + self.width

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, *, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[R, K, P + T, E]`` of the prompt and the new tokens ``[R, K, T, E]``."""
        pairs = zip(self.prompt.kept[layer], (keys, values), strict=True)
        whole = [torch.cat([kept.expand(len(new), -1, -1, -1), new], 2) for kept, new in pairs]
        return whole[0], whole[1]


def runs_in_step(module: nn.Module) -> bool:
    """Whether all ranks must run the module equally often, as under FSDP2."""
    return isinstance(module, FSDPModule)
