"""Predicts a run's memory and time before its first step, and measures both: plan.json of the run folder."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from align.algorithms.kto import KTO
from align.algorithms.memory_report import computed_tokens, unread_tokens
from align.algorithms.module import Stage
from align.algorithms.planning import live_job, reads_reference, rollout_of, with_teacher
from align.algorithms.ppo import PPO
from align.batches import FeedbackBatch, PairBatch
from align.plan.duration import ASSUMED, Duration, Utilisation, duration_of
from align.plan.flops import RunFlops, flops_of
from align.plan.hardware import Hardware, in_use
from align.plan.job import Job
from align.plan.measure import measure
from align.plan.memory import HELD, MemoryEstimate, memory_of
from align.plan.probe import peak_resident_bytes, resident_bytes
from align.plan.record import write_record
from align.plan.volume import DataSizes, rollout_volume, training_volume
from align.training.sharding import local

_WORTH_MEASURING = 10.0
"""Seconds of work at the peak above which a few seconds of measuring the MFU are spent"""


class Prediction(pl.Callback):
    """Writes plan.json: what ``align.plan`` predicts at the first batch, and at the end what the run measured.

    PPO's responses have the mean length of its first rollout. Time is that of training batches and rollouts. Measured
    on rank 0, and in a run that was resumed from its beginning.
    """

    def __init__(self, sizes: Callable[[], object] | None = None) -> None:
        """Nothing predicted yet.

        Args:
            sizes: reads the data and returns its ``DataSizes``, if it can; called only for runs of some length. None:
                those of the first batch stand for all.
        """
        self._sizes = sizes
        self._record: dict[str, Any] | None = None
        self._process = self._gradients = 0
        self._peak: int | None = None
        self._batch_seconds = self._other_seconds = 0.0
        # Kept on the device until they are needed: reading them with every batch would make a GPU wait.
        self._tokens: int | torch.Tensor = 0
        self._batches = 0
        self._clock = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What was predicted and counted so far."""
        return {
            "record": self._record,
            "batch_seconds": self._batch_seconds,
            "other_seconds": self._other_seconds,
            "tokens": int(self._tokens),
            "batches": self._batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._record = state_dict["record"]
        self._batch_seconds, self._other_seconds = state_dict["batch_seconds"], state_dict["other_seconds"]
        self._tokens, self._batches = state_dict["tokens"], state_dict["batches"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Measure the process, before it has networks."""
        self._process = resident_bytes() or 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock: a rollout comes before the first batch."""
        self._clock = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count what came before the batch; predict before the first one."""
        now = time.perf_counter()
        self._other_seconds += now - self._clock if self._clock else 0.0
        if self._record is None and isinstance(pl_module, Stage) and trainer.is_global_zero:
            self._record = self._predicted(trainer, pl_module, batch)
            self._write(trainer)
        self._clock = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure gradients: the most of any step, as some networks may not train at first."""
        if isinstance(pl_module, Stage):
            gradients = [parameter.grad for parameter in pl_module.trained() if parameter.grad is not None]
            self._gradients = max(self._gradients, sum(local(gradient).nbytes for gradient in gradients))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch."""
        now = time.perf_counter()
        self._batch_seconds += now - self._clock
        self._clock = now
        self._tokens = self._tokens + unread_tokens(batch)
        self._batches += 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the peak before the first validation, and stop the clock."""
        self._stop_clock(pl_module.device)
        if not trainer.sanity_checking and self._peak is None and self._batches:
            self._peak = _peak(pl_module.device)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again."""
        self._clock = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what was measured."""
        self._stop_clock(pl_module.device)
        if self._record is None or not isinstance(pl_module, Stage):
            return
        peak = _peak(pl_module.device) if self._peak is None else self._peak
        self._record["measured"] = self._measured(trainer, pl_module, peak)
        self._write(trainer)

    def _stop_clock(self, device: torch.device) -> None:
        """Count what a GPU has not finished; only here, as waiting for every batch would make it idle."""
        if self._clock and device.type == "cuda":
            torch.cuda.synchronize(device)
            self._batch_seconds += time.perf_counter() - self._clock
        self._clock = 0.0

    @rank_zero_only
    def _write(self, trainer: pl.Trainer) -> None:
        if self._record is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_record(Path(trainer.default_root_dir), self._record)

    def _predicted(self, trainer: pl.Trainer, stage: Stage, batch: Any) -> dict[str, Any]:
        job = _job(trainer, stage, batch)
        hardware = in_use(stage.device, job.precision, width=job.policy.config.width)
        job = _with_volume(trainer, stage, job, _sizes_of(job, batch))
        flops, peak = flops_of(job), hardware.peak(job.precision)
        worth = flops is not None and peak is not None and flops.total / peak > _WORTH_MEASURING
        if worth and self._sizes is not None and isinstance(found := self._sizes(), DataSizes):
            longest = job.tokens if isinstance(stage, PPO) else max(job.tokens, found.longest)
            job = _with_volume(trainer, stage, replace(job, tokens=longest), found)
            flops = flops_of(job)
        memory = memory_of(job, process=self._process if job.accelerator == "cpu" else 0)
        utilisation = _utilisation(job, hardware, worth=worth)
        duration = None if flops is None or utilisation is None else duration_of(job, flops, hardware, utilisation)
        return {
            "stage": type(stage).__name__,
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": hardware.name,
            "predicted": {
                "memory": _by_phase(memory),
                "seconds": None if duration is None or flops is None else _seconds(duration, flops, job, stage),
                "tokens": {"trained": job.volume.trained, "sampled": job.volume.sampled},
                "flops": None if flops is None else flops.model,
                "peak_flops": hardware.peak(job.precision),
                "mfu": None if utilisation is None else utilisation.mfu,
                "mfu_source": None if utilisation is None else utilisation.source,
            },
            "measured": None,
        }

    def _measured(self, trainer: pl.Trainer, stage: Stage, peak: int | None) -> dict[str, Any]:
        trained = list(stage.trained())
        ours = {id(parameter) for parameter in trained}
        others = {id(p): local(p).nbytes for p in stage.parameters() if id(p) not in ours}
        states = trainer.optimizers[0].state.values()
        memory: dict[str, int | None] = {
            "process": self._process if stage.device.type == "cpu" else 0,
            "parameters": sum(local(parameter).nbytes for parameter in trained),
            "gradients": self._gradients,
            "optimizer": sum(_nbytes(value) for state in states for value in state.values()),
            "frozen": sum(others.values()),
        }
        held = sum(size or 0 for size in memory.values())
        memory["step"] = None if peak is None else max(0, peak - held)
        memory["peak"] = peak
        work = getattr(stage, "work", {})
        seconds = {"training": self._batch_seconds}
        if isinstance(stage, PPO):
            seconds["rollout"] = self._other_seconds
        return {
            "memory": memory,
            "seconds": seconds | {"total": sum(seconds.values())},
            # Other ranks' batches are like this one's.
            "tokens": {"trained": int(self._tokens) * stage.sharing.ranks, "sampled": work.get("tokens_sampled", 0)},
        }


def _job(trainer: pl.Trainer, stage: Stage, batch: Any) -> Job:
    """The job, with rows and tokens of the first batch."""
    tokens = computed_tokens(batch)
    rows = len(batch.numbers) if isinstance(batch, PairBatch | FeedbackBatch) else len(batch.ids)
    return live_job(stage, max(1, rows), -(-tokens // max(1, rows)))


def _sizes_of(job: Job, batch: Any) -> DataSizes:
    """Those of the first batch, for all batches."""
    lengths = getattr(batch, "lengths", None)
    row = float(batch.ids.shape[1])
    if lengths is not None and len(lengths):
        row = float(torch.as_tensor(lengths, dtype=torch.float32).mean())
    return DataSizes(None, job.tokens, job.tokens, row)


def _steps(trainer: pl.Trainer) -> int | None:
    steps = trainer.estimated_stepping_batches
    return None if steps == float("inf") else int(steps)


def _with_volume(trainer: pl.Trainer, stage: Stage, job: Job, sizes: DataSizes) -> Job:
    steps = _steps(trainer)
    if not isinstance(stage, PPO):
        reads, kto = reads_reference(stage), isinstance(stage, KTO)
        volume = training_volume(job, sizes, steps, reads_reference=reads, reads_mismatched=kto)
        return replace(job, volume=with_teacher(stage, volume))
    loader = stage._loader
    if loader is None or loader.rollout is None:
        return job
    prompts, lengths = loader.rollout.prompt_lengths.float(), loader.rollout.lengths.float()
    rollout = rollout_of(
        stage,
        prompt_tokens=float(prompts.mean()),
        longest_prompt=int(prompts.max()),
        response_tokens=float((lengths - prompts).mean()),
    )
    assert rollout is not None
    job = replace(job, rollout=rollout, tokens=rollout.row_positions(micro_batches=job.accumulate))
    return replace(job, volume=rollout_volume(job, steps))


def _utilisation(job: Job, hardware: Hardware, *, worth: bool) -> Utilisation | None:
    """Measured, if that is worth its time; None where the hardware's peak is unknown."""
    peak = hardware.peak(job.precision)
    if peak is None:
        return None
    plain = not job.precision.four_bit and job.strategy.tensor == 1 and hardware.accelerator in ("cpu", "cuda")
    return measure(job, peak, device=hardware.accelerator) if worth and plain else ASSUMED


def _by_phase(memory: MemoryEstimate) -> dict[str, int]:
    """What is held, by part; what a step or a rollout adds; and the peak."""
    held = {name: getattr(memory, name) for name in HELD}
    return {**held, "step": max(memory.update, memory.rollout), "peak": memory.total}


def _seconds(duration: Duration, flops: RunFlops, job: Job, stage: Stage) -> dict[str, float]:
    """As they are measured: training batches, and rollouts with all that reads them."""
    training = duration.training + duration.optimizer + duration.communication
    if job.rollout is None:
        read = {role: number for role, number in flops.reading.items() if number}
        if reads_reference(stage) == "once":  # before the first batch
            read.pop("reference", None)
        training += duration.reading * sum(read.values()) / max(1.0, sum(flops.reading.values()))
        return {"training": training, "total": training}
    rollout = duration.sampling + duration.reading
    return {"training": training, "rollout": rollout, "total": training + rollout}


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()


def _nbytes(value: Any) -> int:
    """Of a tensor of an optimizer, or of one that is made of others."""
    if not isinstance(value, torch.Tensor):
        return 0
    if hasattr(value, "__tensor_flatten__") and not hasattr(value, "to_local"):
        return sum(_nbytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return local(value).nbytes
