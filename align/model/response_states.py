"""Hidden states that predict responses, computed without padding worth mentioning and with each prompt read once.

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
"""What one more forward costs, in tokens: it decides how finely rows are cut by length"""

_CALL_TOKENS_ELSEWHERE = 4096

_MOST_TOKENS = {"cpu": 2048}
"""Places of a chunk, padding included: beyond this a CPU's caches overflow"""

_MOST_TOKENS_ELSEWHERE = 32768


def response_tokens(ids: torch.Tensor, prompt_lengths: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    """The tokens of all responses, one after another.

    Args:
        ids: ``[B, T]`` int64.
        prompt_lengths: B, tokens of each prompt.
        lengths: B, tokens of each row.

    Returns:
        ``[M]`` int64.
    """
    spans = list(zip(prompt_lengths, lengths, strict=True))
    return ids.flatten()[_places(spans, ids.shape[1], ids.device)]


def response_states(
    network: GPT | ScalarGPT,
    ids: torch.Tensor,
    prompt_lengths: Sequence[int],
    lengths: Sequence[int],
    *,
    group_size: int = 1,
) -> torch.Tensor:
    """The hidden state before each token of each response, in the order of ``response_tokens``.

    Rows of different length are computed as one line without padding, and a row's last token, which predicts nothing,
    not at all. With groups the prompt of each is read once, and its responses attend to it. A compiled network instead
    reads all rows, padded, at once: it wants few shapes. One that all ranks must run equally often computes everything
    in one line, and off the CPU groups are computed in as few lines as fit.

    Args:
        network: a policy, reference or value model.
        ids: ``[B, T]`` int64, right-padded.
        prompt_lengths: B, tokens of each prompt, at least 1.
        lengths: B, tokens of each row, more than of its prompt.
        group_size: so many neighbouring rows have the same prompt; it divides B.

    Returns:
        ``[M, D]``.
    """
    if network.model.compiles:
        width = ids.shape[1] - 1
        spans = [(prompt - 1, length - 1) for prompt, length in zip(prompt_lengths, lengths, strict=True)]
        return network.hidden(ids[:, :width], places=_places(spans, width, ids.device))
    if runs_in_step(network):
        return _one_line(network, ids, prompt_lengths, lengths, group_size)
    if group_size == 1:
        spans = [(prompt - 1, length - 1) for prompt, length in zip(prompt_lengths, lengths, strict=True)]
        return _states(network, ids, spans)
    if ids.device.type != "cpu":
        return _in_lines(network, ids, prompt_lengths, lengths, group_size)
    parts = [
        _group_states(network, ids[start : start + group_size], prompt_lengths[start], lengths[start:][:group_size])
        for start in range(0, len(lengths), group_size)
    ]
    return torch.cat(parts)


def _one_line(
    network: GPT | ScalarGPT,
    ids: torch.Tensor,
    prompt_lengths: Sequence[int],
    lengths: Sequence[int],
    group_size: int,
) -> torch.Tensor:
    """``response_states`` in a single forward, whatever the lengths."""
    prompts, ends = (torch.tensor(counts, device=ids.device) for counts in (prompt_lengths, lengths))
    rows = torch.arange(len(ids), device=ids.device)
    line = share_prefixes(ends - 1, prompts, rows - rows % group_size)
    spans = [(prompt - 1, length - 1) for prompt, length in zip(prompt_lengths, lengths, strict=True)]
    places = line.token_at[_places(spans, line.width, ids.device)]
    return network.hidden(line.line(ids), rows=line, places=places)


def _in_lines(
    network: GPT | ScalarGPT,
    ids: torch.Tensor,
    prompt_lengths: Sequence[int],
    lengths: Sequence[int],
    group_size: int,
) -> torch.Tensor:
    """``response_states`` of groups, so many in a forward as fit: off the CPU calls cost more than what is padded."""
    at_once = group_size * max(1, _MOST_TOKENS_ELSEWHERE // (group_size * ids.shape[1]))
    cuts = [slice(start, start + at_once) for start in range(0, len(ids), at_once)]
    parts = [_one_line(network, ids[cut], prompt_lengths[cut], lengths[cut], group_size) for cut in cuts]
    return torch.cat(parts)


def cut_rows(widths: Sequence[int], *, call_tokens: int, most_tokens: int) -> list[slice]:
    """Cut rows into chunks so that padding plus the cost of a chunk is least.

    Args:
        widths: tokens of each row, longest first.
        call_tokens: what a chunk costs, in tokens.
        most_tokens: places of a chunk, unless it is a single row.

    Returns:
        list[slice]: of neighbouring rows.
    """
    best, cut = [0.0], [0]
    for stop in range(1, len(widths) + 1):
        costs = []
        for start in range(stop - 1, -1, -1):
            places = (stop - start) * widths[start]
            if places > most_tokens and start < stop - 1:
                break
            costs.append((best[start] + places + call_tokens, start))
        cost, start = min(costs)
        best.append(cost)
        cut.append(start)
    chunks, stop = [], len(widths)
    while stop:
        chunks.append(slice(cut[stop], stop))
        stop = cut[stop]
    return chunks[::-1]


def _states(
    network: GPT | ScalarGPT, ids: torch.Tensor, spans: Sequence[tuple[int, int]], prompt: "_Prompt | None" = None
) -> torch.Tensor:
    """Hidden states of the places ``spans`` of each row, row after row; behind ``prompt`` if there is one."""
    device = ids.device
    order = sorted(range(len(spans)), key=lambda row: -spans[row][1])
    widths = [spans[row][1] for row in order]
    most_tokens = _MOST_TOKENS.get(device.type, _MOST_TOKENS_ELSEWHERE)
    # Rows in one line cost their attention alone in padding: as few calls as may be.
    call_tokens = most_tokens if prompt is None else _CALL_TOKENS.get(device.type, _CALL_TOKENS_ELSEWHERE)
    parts = []
    for chunk in cut_rows(widths, call_tokens=call_tokens, most_tokens=most_tokens):
        rows, width = order[chunk], widths[chunk.start]
        if not width:
            continue
        whole = len(rows) == len(ids) and rows == list(range(len(ids)))
        read = (ids if whole else ids[torch.tensor(rows, device=device)])[:, :width]
        places = _places([spans[row] for row in rows], width, device)
        if prompt is not None:
            behind = _Behind(prompt, width)
            positions = torch.arange(prompt.length, behind.length, device=device)
            parts.append(network.hidden(read, positions=positions, cache=behind, places=places))
        elif widths[chunk.stop - 1] == width:
            parts.append(network.hidden(read, places=places))
        else:
            ends = torch.tensor(widths[chunk], device=device)
            line = share_prefixes(ends, ends, torch.arange(len(rows), device=device))
            parts.append(network.hidden(line.line(read), rows=line, places=line.token_at[places]))
    states = torch.cat(parts) if len(parts) > 1 else parts[0]
    if order == sorted(order):
        return states
    # Back into the order of the rows.
    counts = [end - begin for begin, end in spans]
    begins, total = {}, 0
    for row in order:
        begins[row] = total
        total += counts[row]
    back = [place for row, count in enumerate(counts) for place in range(begins[row], begins[row] + count)]
    return states[torch.tensor(back, device=device)]


def _group_states(
    network: GPT | ScalarGPT, ids: torch.Tensor, prompt_length: int, lengths: Sequence[int]
) -> torch.Tensor:
    """``response_states`` of rows that share their prompt."""
    prompt = _Prompt(prompt_length)
    positions = torch.arange(prompt_length, device=ids.device)
    last = network.hidden(ids[:1, :prompt_length], positions=positions, cache=prompt)[0, -1:]
    answers = [length - prompt_length for length in lengths]
    # The first token of a response is predicted by the prompt's last; a response's own last predicts nothing.
    spans = [(0, count - 1) for count in answers]
    if not any(count - 1 for count in answers):
        return last.expand(len(answers), -1)
    states = _states(network, ids[:, prompt_length:], spans, prompt)
    own = torch.cat([last, states])
    places, begin = [], 1
    for count in answers:
        places += [0, *range(begin, begin + count - 1)]
        begin += count - 1
    return own[torch.tensor(places, device=ids.device)]


def _places(spans: Sequence[tuple[int, int]], width: int, device: torch.device) -> torch.Tensor:
    """Flat places of ``begin..end`` of each row of ``width``."""
    flat = [place for row, (begin, end) in enumerate(spans) for place in range(row * width + begin, row * width + end)]
    return torch.tensor(flat, dtype=torch.int64, device=device)


class _Prompt(KVCache):
    """Keys and values of one prompt, with their graph."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def length(self) -> int:
        """Slots that a row sees at most."""
        return self._length

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, *, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the keys and values ``[1, K, P, E]`` of the first time: a block that is made again has no graph."""
        self.kept.setdefault(layer, (keys, values))
        return keys, values


class _Behind(KVCache):
    """What ``width`` tokens behind a prompt see; it keeps nothing, so a block may be made again."""

    def __init__(self, prompt: _Prompt, width: int) -> None:
        self.prompt, self.width = prompt, width

    @property
    def length(self) -> int:
        """Slots that a row sees at most."""
        return self.prompt.length + self.width

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, *, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[R, K, P + T, E]`` of the prompt and the new tokens ``[R, K, T, E]``."""
        pairs = zip(self.prompt.kept[layer], (keys, values), strict=True)
        whole = [torch.cat([kept.expand(len(new), -1, -1, -1), new], 2) for kept, new in pairs]
        return whole[0], whole[1]


def runs_in_step(module: nn.Module) -> bool:
    """Whether all ranks must run it equally often: under FSDP2."""
    return isinstance(module, FSDPModule)
