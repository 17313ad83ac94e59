"""From logits to the next token: the sampling distribution, and one draw from it.

Legend: B rows, V vocabulary.
"""

import hashlib
from collections.abc import Sequence

import torch

from align.generation.sampling_config import SamplingConfig

_NUCLEUS = 256  # entries tried before sorting the whole vocabulary; a trained network's nucleus is smaller


def penalise_repetition(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Penalize tokens that are already in the row (CTRL, arXiv:1909.05858, section 4.1).

    Args:
        logits: ``[B, V]``.
        seen: ``[B, V]`` bool, True = the token is in the prompt or the response so far.
        penalty: above 1 discourages, below 1 encourages.

    Returns:
        ``[B, V]``.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_k_mask(probs: torch.Tensor, k: int) -> torch.Tensor:
    """Select the k most probable tokens, and all that tie with the last of them.

    Args:
        probs: ``[B, V]`` probabilities or logits.
        k: at least 1; above V selects all.

    Returns:
        ``[B, V]`` bool.
    """
    return probs >= probs.topk(min(k, probs.shape[-1])).values[..., -1:]


def top_p_mask(probs: torch.Tensor, p: float) -> torch.Tensor:
    """Select the nucleus (arXiv:1904.09751): the fewest most probable tokens that reach p, and ties with the last.

    Args:
        probs: ``[B, V]``, each row summing to 1.
        p: in (0, 1].

    Returns:
        ``[B, V]`` bool.
    """
    vocabulary = probs.shape[-1]
    values = probs.topk(min(_NUCLEUS, vocabulary)).values
    if vocabulary > _NUCLEUS and bool((values.sum(-1) < p).any()):
        values = probs.sort(dim=-1, descending=True).values
    before = values.cumsum(-1) - values
    last = (before < p).sum(-1, keepdim=True).clamp(min=1) - 1
    return probs >= values.gather(-1, last)


def min_p_mask(probs: torch.Tensor, share: float) -> torch.Tensor:
    """Select tokens at least ``share`` times as probable as the most probable one (arXiv:2407.01082).

    Args:
        probs: ``[B, V]``.
        share: in [0, 1].

    Returns:
        ``[B, V]`` bool.
    """
    return probs >= share * probs.amax(-1, keepdim=True)


def sampling_probs(logits: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """The sampling distribution: temperature, then top-k, top-p and min-p, each renormalized before the next.

    At temperature 0 it is the plain softmax, whose mode is the greedy choice.

    Args:
        logits: ``[B, V]``.
        sampling: the settings; ``repetition_penalty`` is applied before, by ``penalise_repetition``.

    Returns:
        ``[B, V]`` float32, each row summing to 1.
    """
    logits = logits.float()
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    probs = logits.softmax(-1)
    if sampling.temperature == 0:
        return probs
    if sampling.top_k:
        probs = _keep(probs, top_k_mask(probs, sampling.top_k))
    if sampling.top_p < 1:
        probs = _keep(probs, top_p_mask(probs, sampling.top_p))
    if sampling.min_p:
        probs = _keep(probs, min_p_mask(probs, sampling.min_p))
    return probs


def _keep(probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kept = probs * mask
    return kept / kept.sum(-1, keepdim=True)


def draw(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Sample one token per row by inverting the cumulative distribution, from one random number per row.

    The token is the first whose cumulative probability exceeds ``uniforms`` times the total, so a token of
    probability 0 is never drawn.

    Args:
        probs: ``[B, V]``, non-negative, each row with a positive sum.
        uniforms: ``[B]`` in [0, 1).

    Returns:
        ``[B]`` int64; arbitrary for a row that is not finite.
    """
    cumulative = probs.cumsum(-1)
    if cumulative.device.type != "cpu":
        # Parallel sums need not be monotone: rounding could give a token of probability 0 an interval.
        cumulative = cumulative.masked_fill(probs == 0, 0).cummax(-1).values
    total = cumulative[:, -1]
    # Rounding can raise u * total to the total, past every token.
    targets = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, targets[:, None], right=True)[:, 0].clamp(max=probs.shape[-1] - 1)


def next_tokens(
    logits: torch.Tensor, sampling: SamplingConfig, *, uniforms: torch.Tensor, seen: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of sampling.

    Args:
        logits: ``[B, V]``.
        sampling: the settings.
        uniforms: ``[B]`` in [0, 1); unused at temperature 0.
        seen: ``[B, V]`` bool, True on tokens already in the row; None without a repetition penalty.

    Returns:
        The tokens ``[B]`` int64, and their log-probabilities ``[B]`` float32 under the distribution of
        ``sampling_probs``.
    """
    if seen is not None:
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    probs = sampling_probs(logits, sampling)
    tokens = probs.argmax(-1) if sampling.temperature == 0 else draw(probs, uniforms)
    return tokens, probs.gather(1, tokens[:, None])[:, 0].log()


def row_uniforms(seeds: Sequence[int], steps: int) -> torch.Tensor:
    """Random numbers of each row from its own CPU generator, the same in any batch and on any device.

    Args:
        seeds: one per row.
        steps: maximum tokens per row.

    Returns:
        ``[B, steps]`` float32 in [0, 1).
    """
    return torch.stack([torch.rand(steps, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def row_seeds(seeds: int | Sequence[int], rows: int) -> list[int]:
    """Seeds of the rows of a batch: as given, or hashed from one seed.

    Raises:
        ValueError: there is not one seed per row.
    """
    if not isinstance(seeds, int):
        if len(seeds) != rows:
            raise ValueError(f"{len(seeds)} seeds were given for {rows} prompts; give one each, or a single integer")
        return list(seeds)
    return [response_seed(seeds, row) for row in range(rows)]


def response_seed(seed: int, *indices: int) -> int:
    """The seed of one response: the first 63 bits of a SHA-256 over the run's seed and the response's indices.

    Nearby seeds and indices share no random numbers, and a response depends neither on its batch nor on earlier ones.

    Args:
        seed: of the run or command.
        indices: what identifies the response within it, such as (prompt, sample) or (iteration, prompt, sample).

    Returns:
        int: in [0, 2^63).
    """
    digest = hashlib.sha256(":".join(map(str, (seed, *indices))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
