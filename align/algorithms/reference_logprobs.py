"""Reference log-probs of all given responses: computed once, since the reference never changes, and cached on disk.

Legend: R records (pairs, or responses with feedback) of a split, B records of a batch.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from align.batches import FeedbackBatch, PairBatch
from align.generation.generate import evaluating
from align.io.atomic import replacing_file
from align.io.progress import progress_bar
from align.model.gpt import GPT
from align.training.float64 import wide
from align.training.preemption import leave_validation

_VERSION = 1
"""Of the computation and the file format; a change invalidates existing files."""


def reference_table(
    trainer: pl.Trainer,
    network: Callable[[], GPT],
    logprobs: Callable[[GPT, Any], torch.Tensor],
    *,
    split: str,
    weights: str,
    precision: str,
) -> torch.Tensor:
    """Log-probs of a split's responses under the reference: read from the cache, or computed by all ranks and saved.

    Args:
        trainer: its datamodule is a ResponseData (``record_loader``, ``identity``, ``cache_dir``).
        network: returns the reference; called only if the log-probs are not cached.
        logprobs: log-probs ``[2B]`` of a batch, in the order of its rows.
        split: "train", "validation" or "test".
        weights: fingerprint of the reference's weights.
        precision: of the reference's matrix products and weights.

    Returns:
        ``[R, 2]`` float64 on the CPU, nats: both responses of record r.

    Raises:
        ValueError: the data module is not a ResponseData, so records have no fixed numbers.
        Preempted: the run was preempted while computing those of the validation records.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not (hasattr(data, "record_loader") and hasattr(data, "identity")):
        raise ValueError(
            "reference_logprobs is precomputed, which needs PreferenceData or FeedbackData, not "
            f"{type(data).__name__}; set it to on_the_fly"
        )
    loader = data.record_loader(split)
    records = len(loader.dataset)
    path = cache_file(data.cache_dir, data=data.identity(split), weights=weights, precision=precision, pairs=records)
    # Only one rank reads, so that all ranks agree.
    found = trainer.strategy.broadcast(read_cache(path, records) if trainer.is_global_zero else None)
    if found is None:
        found = _computed(trainer, network(), logprobs, loader, records, split=split)
        if trainer.is_global_zero:
            write_cache(path, found)
        rank_zero_info(f"reference log-probs of {records:,} {split} records: computed, cached in {path}")
    else:
        rank_zero_info(f"reference log-probs of {records:,} {split} records: from {path}")
    return torch.from_numpy(found)


def cache_file(directory: str | Path, **key: Any) -> Path:
    """File for the log-probs that are determined by ``key``."""
    text = json.dumps({"version": _VERSION, **key}, sort_keys=True)
    return Path(directory) / f"reference-{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def read_cache(path: Path, records: int) -> np.ndarray | None:
    """The log-probs ``[records, 2]`` of a file; None if it does not exist or, with a warning, if it is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:  # a zip: reading checks its checksums
            values: np.ndarray = stored["logprobs"]
        if values.shape != (records, 2) or values.dtype != np.float64 or not np.isfinite(values).all():
            raise ValueError(f"holds {values.dtype} {list(values.shape)} instead of finite float64 [{records}, 2]")
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        rank_zero_warn(f"{path}: damaged ({error}); recomputing the reference log-probs")
        return None
    return values


def write_cache(path: Path, values: np.ndarray) -> None:
    """Write a cache file, whole."""
    with replacing_file(path, binary=True) as file:
        np.savez(file, logprobs=values)


@torch.no_grad()
def _computed(
    trainer: pl.Trainer,
    network: GPT,
    logprobs: Callable[[GPT, Any], torch.Tensor],
    loader: Collection[PairBatch | FeedbackBatch],
    records: int,
    *,
    split: str,
) -> np.ndarray:
    """Each rank computes the records of its loader; then they are gathered."""
    device = trainer.strategy.root_device
    network = network.to(device)
    values = wide(torch.zeros(records, 3, device=device))  # both responses, times seen
    with evaluating(network), trainer.precision_plugin.forward_context():
        for batch in _with_bar(trainer, loader, f"reference log-probs, {split}"):
            leave_validation(trainer)
            batch = trainer.strategy.batch_to_device(batch, device)
            real = batch.numbers >= 0
            found = torch.stack([*wide(logprobs(network, batch)).chunk(2), wide(real)], 1)
            values[batch.numbers[real].to(values.device)] += found[real.to(found.device)]
    stage: Any = trainer.lightning_module
    values = stage.reduce(values, "sum")
    if not bool((values[:, 2] == 1).all()):
        missed = int((values[:, 2] == 0).sum())
        raise RuntimeError(f"of {records} {split} records {missed} were missed, or some were computed more than once")
    return values[:, :2].contiguous().cpu().numpy()


def _with_bar(
    trainer: pl.Trainer, loader: Collection[PairBatch | FeedbackBatch], text: str
) -> Iterator[PairBatch | FeedbackBatch]:
    with progress_bar(text, len(loader), show=trainer.is_global_zero) as advance:
        for batch in loader:
            yield batch
            advance(1)


def network_fingerprint(network: GPT) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a network's tensors, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        digest.update(values.view(torch.uint8).numpy() if values.dim() else values[None].view(torch.uint8).numpy())
    return digest.hexdigest()
