"""Sample responses to a batch of prompts of different length.

Legend: B rows, N tokens of the longest response, V vocabulary.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from align.generation.decoder import Decoder, PackedDecoder, StaticDecoder
from align.generation.packed_blocks import can_pack
from align.generation.sampled_ids import SampledIds
from align.generation.sampling import next_tokens, row_seeds, row_uniforms
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT

# Finished rows are dropped once they are this share of the batch: moving the others costs about one step.
_IDLE_SHARE = 1 / 8


class Samples(NamedTuple):
    """Sampled responses.

    Attributes:
        ids: ``[B, N]`` int64, the responses, right-padded with ``pad_id``.
        logprobs: ``[B, N]`` float32, log-probability of each token under the sampling distribution, after temperature
            and filters (at temperature 0: the plain softmax); 0 on padding.
        mask: ``[B, N]`` bool, True on tokens of the response, including a stop token.
        finished: ``[B]`` bool, True where a stop token ended the response, False where it was truncated.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    mask: torch.Tensor
    finished: torch.Tensor


@torch.no_grad()
def generate(
    network: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    stop_ids: Sequence[int] = (),
    seeds: int | Sequence[int] = 0,
    pad_id: int = 0,
    on_token: Callable[[int, int], bool | None] | None = None,
    on_step: Callable[[], None] | None = None,
    static: bool = False,
    sampled: SampledIds = SampledIds(),  # noqa: B008 (frozen)
) -> Samples:
    """Sample one response to each prompt.

    A response ends with a stop token, after ``max_new_tokens``, or when it fills the context. Without stop ids every
    response has exactly ``max_new_tokens`` tokens if the context has room. The network runs in evaluation mode and is
    restored afterwards; the global generator is not used.

    Args:
        network: with hooks, sharded weights or 4 bits, its own, slower forward pass is used.
        prompts: token ids, at least one each.
        sampling: the settings.
        stop_ids: tokens that end a response.
        seeds: one for the whole call, or one per row, so that a row's random numbers don't depend on its batch.
        pad_id: padding of ``ids``.
        on_token: called with (row, token) as soon as a token is sampled; True ends the response, as a stop token does.
        on_step: called before each step; an exception it raises ends the sampling.
        static: fixed shapes, replayed as a CUDA graph on a GPU; equal up to rounding. No effect on networks that use
            their own forward pass.
        sampled: ids that may be sampled; the distribution is the softmax over their logits. By default all rows of the
            output matrix.

    Returns:
        Samples on the network's device.

    Raises:
        ValueError: a prompt is empty or leaves no room in the context; a prompt or stop id is not in the vocabulary;
            there is not one seed per row; or the logits are not finite.
    """
    vocab_size, context = sampled.count(network.config.vocab_size), network.config.context
    _check(prompts, stop_ids, vocab_size=vocab_size, context=context)
    seeds = row_seeds(seeds, len(prompts))
    # Longest first: the decoder processes adjacent rows together.
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    prompts = [prompts[row] for row in order]
    rooms = [min(sampling.max_new_tokens, context - len(prompt)) for prompt in prompts]
    # The last token of a row is never processed.
    slots = max(len(prompt) + room - 1 for prompt, room in zip(prompts, rooms, strict=True))
    kind = Decoder if not can_pack(network) else StaticDecoder if static else PackedDecoder
    with evaluating(network), _computing_in(sampling.dtype, network.output_weight.device.type):
        decoder = kind(network, prompts, slots=slots)
        samples = _sample(
            decoder,
            sampling,
            sampled=sampled,
            stops=_stop_table(stop_ids, vocab_size, device=decoder.positions.device),
            rooms=rooms,
            seeds=[seeds[row] for row in order],
            pad_id=pad_id,
            on_token=None if on_token is None else lambda row, token: on_token(order[row], token),
            on_step=on_step,
        )
    return _put_back(samples, order)


def _computing_in(dtype: str | None, device_type: str) -> AbstractContextManager[object]:
    """Autocast, which decoders follow: products, packed weights and cache in ``dtype``, the residual stream as it is.

    Args:
        dtype: of ``SamplingConfig``.
        device_type: of the network.
    """
    if dtype is None:
        return nullcontext()
    if device_type == "cpu" and not _cpu_has_bfloat16():
        _warn_of_emulation(dtype)
    return torch.autocast(device_type, dtype=getattr(torch, dtype))


def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers (AVX512-BF16, AMX, Arm's BF16)."""
    return any(present for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)


@cache  # once per process
def _warn_of_emulation(dtype: str) -> None:
    warnings.warn(
        f"sampling in {dtype} on a processor without {dtype} instructions is correct but slower than in float32: "
        "remove the setting dtype",
        stacklevel=2,
    )


def _sample(
    decoder: Decoder,
    sampling: SamplingConfig,
    *,
    sampled: SampledIds,
    stops: torch.Tensor | None,
    rooms: Sequence[int],
    seeds: Sequence[int],
    pad_id: int,
    on_token: Callable[[int, int], bool | None] | None,
    on_step: Callable[[], None] | None,
) -> Samples:
    """The loop of ``generate``, in the decoder's order of rows.

    1. Prefill the prompts. 2. Turn logits into a distribution. 3. Sample. 4. Record the tokens. 5. Find rows that end,
    and drop finished ones. 6. Decode the tokens and repeat from 2.

    Args, besides those of ``generate``:
        decoder: with the prompts.
        sampled: ids that may be sampled.
        stops: ``[ids]`` bool, True on stop tokens; None if there are none.
        rooms: maximum new tokens of each row.
    """
    device, batch, longest = decoder.positions.device, len(rooms), max(rooms)
    ids, logprobs, mask, finished = _no_samples(batch, longest, pad_id=pad_id, device=device)
    uniforms = row_uniforms(seeds, longest).to(device)
    room = torch.tensor(rooms, device=device)
    rows = torch.arange(batch, device=device)  # the decoder's rows, including finished ones not dropped yet
    alive = torch.ones_like(rows, dtype=torch.bool)
    logits = sampled.without_missing(decoder.read_prompts())
    seen = None if sampling.repetition_penalty == 1 else _seen(decoder.prompts, logits)
    for step in range(longest):
        tokens, chosen = next_tokens(logits, sampling, uniforms=uniforms[rows, step], seen=seen)
        ids[rows, step] = tokens.where(alive, pad_id)
        logprobs[rows, step] = chosen.where(alive, 0)
        mask[rows, step] = alive
        ended = torch.zeros_like(alive) if stops is None else alive & stops[tokens]
        if on_token is not None:
            told = [
                bool(on_token(row, token))
                for row, token in zip(rows[alive].tolist(), tokens[alive].tolist(), strict=True)
            ]
            ended[alive] |= torch.tensor(told, dtype=torch.bool, device=device)
        finished[rows] = finished[rows] | ended  # not rows[ended], which would synchronize a GPU in every step
        alive = alive & ~ended
        alive = alive & (room[rows] > step + 1)
        if step + 1 == longest:
            break
        left = len(rows) if (step + 1) % decoder.check_every else int(alive.sum())
        if left == 0:
            break
        if decoder.shrinks and left <= (1 - _IDLE_SHARE) * len(rows):
            kept = alive.nonzero()[:, 0]
            decoder.keep(kept)
            rows, alive, tokens = rows[kept], alive[kept], tokens[kept]
            seen = None if seen is None else seen[kept]
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        if on_step is not None:
            on_step()
        logits = sampled.without_missing(decoder.step(tokens))
    length = int(mask.sum(1).max())
    return Samples(ids[:, :length], logprobs[:, :length], mask[:, :length], finished)


def _put_back(samples: Samples, order: Sequence[int]) -> Samples:
    """Undo the permutation ``order`` of the rows; refuses log-probabilities that are not finite."""
    if not bool(samples.logprobs.isfinite().all()):
        raise ValueError("the network's logits are not finite while sampling: check its weights for NaN or infinity")
    back = torch.tensor(order, device=samples.ids.device).argsort()
    return Samples(*(tensor[back] for tensor in samples))


def _no_samples(batch: int, longest: int, *, pad_id: int, device: torch.device) -> Samples:
    """Empty responses."""
    return Samples(
        ids=torch.full((batch, longest), pad_id, device=device),
        logprobs=torch.zeros(batch, longest, device=device),
        mask=torch.zeros(batch, longest, dtype=torch.bool, device=device),
        finished=torch.zeros(batch, dtype=torch.bool, device=device),
    )


def _seen(prompts: Sequence[Sequence[int]], logits: torch.Tensor) -> torch.Tensor:
    """``[B, V]`` bool, True on the tokens of each row's prompt."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, torch.tensor(prompt, device=logits.device)] = True
    return seen


def _stop_table(stop_ids: Sequence[int], vocab_size: int, *, device: torch.device) -> torch.Tensor | None:
    if not stop_ids:
        return None
    table = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    table[list(stop_ids)] = True
    return table


def _check(prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], *, vocab_size: int, context: int) -> None:
    if not prompts:
        raise ValueError("prompts is empty; give at least one")
    for row, prompt in enumerate(prompts):
        if not 1 <= len(prompt) < context:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens; it must have at least 1 and at most {context - 1}, "
                f"to leave room for a response in the context of {context}"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(f"prompt {row} has an id outside the vocabulary of {vocab_size}")
    for token in stop_ids:
        if not 0 <= token < vocab_size:
            raise ValueError(f"stop id {token} is outside the vocabulary of {vocab_size}")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of the block; restores the mode of every module."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
