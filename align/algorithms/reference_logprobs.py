"""What a network gives each answer of a batch of pairs.

Legend: B pairs, T tokens of a row, V vocabulary.

Reference log-probs of pairs, computed once and kept on disk: the reference never changes, so why ask it again.

Legend: R pairs of a split, B pairs of a batch.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console
from rich.progress import track

from align.batches import PairBatch
from align.generation.generate import evaluating
from align.io.atomic import replacing_file
from align.model.gpt import GPT
from align.model.packing import share_responses
from align.objectives import sequence_logprobs, token_logprobs
from align.training.preemption import leave_validation


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
    distinct = share_responses(ids, (batch.lengths - 1).clamp(min=0), batch.prompt_lengths.repeat(2))
    mask = mask.new_zeros(len(distinct.ids), ids.shape[1]).index_copy_(0, distinct.row_of, mask)[:, 1:]
    # The state at place t predicts the token at t + 1.
    row, column = mask.nonzero(as_tuple=True)
    line, indices = distinct.rows.line(distinct.ids), distinct.rows.tokens_at(row, column)
    states = network.hidden(line, rows=distinct.rows, indices=indices)
    logprobs = token_logprobs(states, network.output_weight, distinct.ids[row, column + 1])
    return logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs).sum(1)[distinct.row_of]


_VERSION = 1
"""Of the numbers and of the file: a file of another is not read"""


def reference_table(
    trainer: pl.Trainer,
    network: Callable[[], GPT],
    *,
    split: str,
    weights: str,
    precision: str,
    shared_prefix: bool,
) -> torch.Tensor:
    """Log-probs of every pair of a split under the reference: from the cache, or computed by all ranks and written.

    Args:
        trainer: its datamodule is a PreferenceData (``pair_loader``, ``identity``, ``cache_dir``).
        network: gives the reference; called only where the cache has nothing.
        split: "train", "validation" or "test".
        weights: fingerprint of the reference's weights.
        precision: of the reference's products and weights.
        shared_prefix: see ``pair_logprobs``.

    Returns:
        ``[R, 2]`` float64 on the CPU, nats: chosen and rejected of pair r.

    Raises:
        ValueError: the data can't say what they are.
        Preempted: the run was asked to leave in the middle of a validation's.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not (hasattr(data, "pair_loader") and hasattr(data, "identity")):
        raise ValueError(
            f"reference_logprobs is precomputed, which needs align.data.PreferenceData, not {type(data).__name__}: "
            "set it to on_the_fly"
        )
    loader = data.pair_loader(split)
    pairs = len(loader.dataset)
    path = cache_file(data.cache_dir, data=data.identity(split), weights=weights, precision=precision, pairs=pairs)
    # One rank looks, so that all of them agree.
    found = trainer.strategy.broadcast(read_cache(path, pairs) if trainer.is_global_zero else None)
    if found is None:
        found = _computed(trainer, network(), loader, pairs, split=split, shared_prefix=shared_prefix)
        if trainer.is_global_zero:
            write_cache(path, found)
        rank_zero_info(f"reference log-probs of {pairs:,} {split} pairs: computed, kept in {path}")
    else:
        rank_zero_info(f"reference log-probs of {pairs:,} {split} pairs: from {path}")
    return torch.from_numpy(found)


def cache_file(directory: str | Path, **key: Any) -> Path:
    """Where the log-probs are kept that ``key`` decides."""
    text = json.dumps({"version": _VERSION, **key}, sort_keys=True)
    return Path(directory) / f"reference-{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def read_cache(path: Path, pairs: int) -> np.ndarray | None:
    """The log-probs ``[pairs, 2]`` of a file; None where there is none or it can't be used, which is told."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:  # a zip: reading checks its checksums
            values: np.ndarray = stored["logprobs"]
        if values.shape != (pairs, 2) or values.dtype != np.float64 or not np.isfinite(values).all():
            raise ValueError(f"holds {values.dtype} {list(values.shape)} instead of finite float64 [{pairs}, 2]")
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        rank_zero_warn(f"{path}: damaged ({error}); the reference log-probs are computed again")
        return None
    return values


def write_cache(path: Path, values: np.ndarray) -> None:
    """Write a cache file, whole."""
    with replacing_file(path, binary=True) as file:
        np.savez(file, logprobs=values)


@torch.no_grad()
def _computed(
    trainer: pl.Trainer, network: GPT, loader: Iterable[PairBatch], pairs: int, *, split: str, shared_prefix: bool
) -> np.ndarray:
    """Every rank does the pairs that its loader gives; then they are put together."""
    device = trainer.strategy.root_device
    network = network.to(device)
    values = torch.zeros(pairs, 3, dtype=torch.float64, device=device)  # chosen, rejected, times seen
    with evaluating(network), trainer.precision_plugin.forward_context():
        for batch in _with_bar(trainer, loader, f"reference log-probs, {split}"):
            leave_validation(trainer)
            batch = trainer.strategy.batch_to_device(batch, device)
            real = batch.numbers >= 0
            logprobs = pair_logprobs(network, batch, shared_prefix=shared_prefix).double()
            found = torch.stack([*logprobs.chunk(2), real.double()], 1)
            values[batch.numbers[real]] += found[real]
    stage: Any = trainer.lightning_module
    values = stage.reduce(values, "sum")
    if not bool((values[:, 2] == 1).all()):
        missed = int((values[:, 2] == 0).sum())
        raise RuntimeError(f"of {pairs} {split} pairs {missed} were not seen, or some more than once")
    return values[:, :2].contiguous().cpu().numpy()


def _with_bar(trainer: pl.Trainer, loader: Iterable[PairBatch], text: str) -> Iterator[PairBatch]:
    console = Console(stderr=True)
    quiet = not (console.is_terminal and trainer.is_global_zero)
    yield from track(loader, text, console=console, transient=True, disable=quiet)


def network_fingerprint(network: GPT) -> str:
    """What the weights of a network in memory are: sha256 in hexadecimal over their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        digest.update(values.view(torch.uint8).numpy() if values.dim() else values[None].view(torch.uint8).numpy())
    return digest.hexdigest()
