"""Parts of benchmarks/gpu.py: shapes, random rows as the data modules would deliver them, and timers.

Needs torch, Lightning and what align.model, align.algorithms and align.tokenizer import: no datasets, no jsonargparse.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch

from align.batches import PairBatch, PromptBatch, TokenBatch
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.tokenizer import Tokenizer, train_tokenizer

Result = TypeVar("Result")

SHAPES = {
    "124 M": {"layers": 12, "heads": 12, "width": 768, "ff_width": 2048},
    "350 M": {"layers": 24, "heads": 16, "width": 1024, "ff_width": 2688},
    "1.3 B": {"layers": 24, "heads": 16, "width": 2048, "ff_width": 5504},
}
TOY = {"layers": 2, "heads": 2, "width": 32, "ff_width": 64}
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "B200": 2250e12}
"""FLOP/s of dense bfloat16 products by the data sheets (SXM where there are several), by what a device's name holds"""


def shape(name: str, *, toy: bool) -> GPTConfig:
    """The shape of a size; all sizes have the same toy shape."""
    if toy:
        return GPTConfig(vocab_size=300, context=64, **TOY)
    return GPTConfig(vocab_size=50304, context=1024, **SHAPES[name])


def peak_flops(device: str) -> float | None:
    """Peak FLOP/s of a device by its name; None if unknown."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def where() -> torch.device:
    """The device to measure."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fresh(kind: Callable[[GPTConfig], Result], config: GPTConfig) -> Result:
    """A network with random weights, created on the device: drawing 1.3 B of them on a CPU takes long."""
    with where():
        return kind(config)


def forget_peak() -> None:
    """Reset the peak memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Phases:
    """Seconds spent in parts of a step; measuring waits for the device at both ends of each, so only while ``on``."""

    on: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, function: Callable[..., Result]) -> Callable[..., Result]:
        """``function``, its time added to ``name``."""

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Result:
            if not self.on:
                return function(*args, **kwargs)
            synchronise()
            begun = time.perf_counter()
            result = function(*args, **kwargs)
            synchronise()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun
            return result

        return measured


class Steps(pl.Callback):
    """Seconds of the training batches after the warm-up, and then of batches in which phases are measured too.

    Args:
        warmup: batches that are not timed.
        timed: batches that are timed.
        phases: turned on for the rest.
    """

    def __init__(self, warmup: int, timed: int, phases: Phases | None = None) -> None:
        """Start with no batches."""
        self.warmup, self.timed, self.phases, self.done = warmup, timed, phases, 0
        self.seconds = self.phase_seconds = self._mark = 0.0

    def tick(self) -> None:
        """Count a finished batch or iteration."""
        self.done += 1
        if self.done in (self.warmup, self.warmup + self.timed):
            synchronise()
            now = time.perf_counter()
            self.seconds, self._mark = now - self._mark, now
            if self.phases is not None:
                self.phases.on = self.done > self.warmup
        elif self.done > self.warmup + self.timed:
            synchronise()
            self.phase_seconds = time.perf_counter() - self._mark

    def on_train_batch_end(self, *_: Any) -> None:
        """Count it."""
        self.tick()

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Drop the optimizer: the Trainer would first copy its gigabytes to the host."""
        trainer.strategy.optimizers = []


class Iterations(Steps):
    """The same for epochs of the Trainer, which are PPO's iterations."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Only epochs count."""

    def on_train_epoch_end(self, *_: Any) -> None:
        """Count it."""
        self.tick()


class Given(pl.LightningDataModule):
    """Repeats given batches endlessly."""

    def __init__(self, batches: list[Any], count: int) -> None:
        """Keep them."""
        super().__init__()
        self.batches = [batches[number % len(batches)] for number in range(count)]

    def train_dataloader(self) -> Any:
        """One batch at a time."""
        return torch.utils.data.DataLoader(self.batches, batch_size=None)


def token_batches(config: GPTConfig, rows: int, count: int) -> list[TokenBatch]:
    """Full rows of random tokens, all of which count."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        ids = torch.randint(config.vocab_size, (rows, config.context + 1), generator=generator)
        mask, sizes = torch.ones_like(ids, dtype=torch.bool), torch.full((rows,), 4 * config.context)
        found.append(TokenBatch(ids, mask, None, None, sizes))
    return found


def pair_batches(config: GPTConfig, pairs: int, count: int) -> list[PairBatch]:
    """Pairs whose prompts and responses have random lengths between an eighth and a quarter of the context."""
    generator = torch.Generator().manual_seed(0)
    low, high = config.context // 8, config.context // 4
    found = []
    for number in range(count):
        prompts = torch.randint(low, high + 1, (pairs,), generator=generator)
        lengths = prompts.repeat(2) + torch.randint(low, high + 1, (2 * pairs,), generator=generator)
        ids = torch.randint(config.vocab_size, (2 * pairs, int(lengths.max())), generator=generator)
        column = torch.arange(ids.shape[1])
        # Both responses of a pair share the prompt.
        ids[pairs:] = torch.where(column < prompts[:, None], ids[:pairs], ids[pairs:])
        real = column < lengths[:, None]
        mask = real & (column >= prompts.repeat(2)[:, None])
        numbers = torch.arange(number * pairs, (number + 1) * pairs)
        found.append(PairBatch(ids.where(real, 0), mask, lengths, prompts, numbers, ("",) * pairs, ({},) * pairs))
    return found


class Prompts(pl.LightningDataModule):
    """Random prompts of one length. The tokenizer has no stop tokens, and its decoded texts are not read."""

    def __init__(self, config: GPTConfig, *, length: int, batch_size: int) -> None:
        """Draw them."""
        super().__init__()
        self.tokenizer: Any = train_tokenizer(["ab"], vocab_size=263)
        self.tokenizer.stop_ids, self.tokenizer.decode = (), lambda ids: ""
        # Otherwise the other rows were padding, which is never sampled.
        self.tokenizer.vocab_size, self.tokenizer.missing_ids = config.vocab_size, ()
        self.context, self.batch_size = config.context, batch_size
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(263, config.vocab_size, (4 * batch_size, length), generator=generator)

    def train_dataloader(self) -> Any:
        """The stage's rollout loader over the prompts."""
        stage: Any = self.trainer.lightning_module
        return stage.rollout_loader(_PromptLoader(self.ids, self.batch_size))


class _PromptLoader:
    """Batches of prompts in order, with the state methods of a resumable loader."""

    def __init__(self, ids: torch.Tensor, batch_size: int) -> None:
        self.ids, self.batch_size = ids, batch_size

    def __len__(self) -> int:
        return len(self.ids) // self.batch_size

    def __iter__(self) -> Iterator[PromptBatch]:
        for start in range(0, len(self.ids), self.batch_size):
            ids = self.ids[start : start + self.batch_size]
            lengths = torch.full((len(ids),), ids.shape[1])
            yield PromptBatch(ids, lengths, torch.arange(start, start + len(ids)), ("",) * len(ids), ({},) * len(ids))

    def state_dict(self) -> dict[str, Any]:
        """Empty: this run is never resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


def save_model(
    kind: Callable[[GPTConfig], GPT | ScalarGPT], config: GPTConfig, folder: Path, tokenizer: Tokenizer | None = None
) -> str:
    """A model directory with random weights, written once; the tokenizer is optional."""
    if not folder.exists():
        # Renamed when complete, so that a partial directory is never used.
        part = Path(tempfile.mkdtemp(dir=folder.parent))
        save_network(fresh(kind, config), part, bos_id=257, eos_ids=[262], pad_id=256)
        if tokenizer is not None:
            tokenizer.save(part)
        part.rename(folder)
    return str(folder)
