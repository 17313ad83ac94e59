"""Where the jobs of a recipe run: on this machine, on a Slurm cluster, on Ray.

Every task of a job that is complete has left a mark in the folder of its logs, so a run resumes where it stopped. A
task that was not complete starts over and overwrites its files. Results depend on the number of tasks, which is the
recipe's, not on how many run at a time.
"""

import copy
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from loguru import logger

from align.curate.cleaning.steps import Job
from align.io.progress import progress_bar


class Executor(ABC):
    """Runs jobs one after the other. Subclass it as a frozen dataclass of settings."""

    @abstractmethod
    def run(self, jobs: Sequence[Job], logs: Path) -> bool:
        """Run what is not complete.

        Args:
            jobs: in order; each reads what those before it have written.
            logs: a folder that all tasks can write to; a job's logs, statistics and marks of completion go to a folder
                of its name.

        Returns:
            bool: whether the jobs are done; False if they were submitted.
        """


@dataclass(frozen=True)
class Local(Executor):
    """Tasks run on this machine."""

    workers: int | None = 1
    """Tasks that run at a time; null: one for each processor"""

    def __post_init__(self) -> None:
        """Reject invalid settings.

        Raises:
            ValueError: no workers.
        """
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}; it must be at least 1, or null")

    def run(self, jobs: Sequence[Job], logs: Path) -> bool:
        """Run what is not complete, with a progress bar for each job."""
        workers = self.workers or os.cpu_count() or 1
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent) if workers > 1 else None
        try:
            for number, job in enumerate(jobs, 1):
                tasks = _Tasks(job, logs / job.name)
                waiting = tasks.get_incomplete_ranks()
                with progress_bar(f"{number}/{len(jobs)} {job.name}", len(waiting)) as advance:
                    if pool is None or len(waiting) < 2:
                        for rank in waiting:
                            tasks.run_one(rank)
                            advance(1)
                    else:
                        for done in as_completed([pool.submit(tasks.run_one, rank) for rank in waiting]):
                            done.result()
                            advance(1)
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        return True


class _Tasks(PipelineExecutor):
    """The tasks of one job, run by whoever calls.

    datatrove's own local executor starts a manager that outlives a killed run, and logs to the console.
    """

    def __init__(self, job: Job, logs: Path) -> None:
        super().__init__(list(job.pipeline), str(logs))
        self.tasks = job.tasks

    def run(self) -> None:
        for rank in self.get_incomplete_ranks():
            self.run_one(rank)

    def run_one(self, rank: int) -> None:
        fresh = copy.deepcopy(self)  # blocks keep their statistics
        logger.remove()
        logger.disable("datatrove.executor.base")  # prints the traceback of an error that the caller reports
        try:
            fresh._run_for_rank(rank, local_rank=1)  # only rank 0 logs to the console
        finally:
            logger.remove()

    @property
    def world_size(self) -> int:
        return self.tasks

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="-1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor="LOCAL",
        )


def _end_with_parent() -> None:
    """Make Linux end a worker whose parent was killed: it would go on writing what a resumed run writes again."""
    if sys.platform == "linux":
        import ctypes
        import signal

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


@dataclass(frozen=True)
class Slurm(Executor):
    """Jobs are submitted with ``sbatch``, each to begin when the one before it has ended.

    The output folder has to be on a disk that all nodes share. Run the same command again after a failure: what is
    complete is not submitted again.
    """

    partition: str
    time: str
    """Limit of a job, such as 10:00:00"""
    workers: int = -1
    """Tasks that run at a time; -1: no limit"""
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 4
    """GB of memory for each processor"""
    qos: str = "normal"
    venv_path: str | None = None
    """Virtual environment of the nodes; null: the one of this command"""
    sbatch_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of sbatch"""

    def run(self, jobs: Sequence[Job], logs: Path) -> bool:
        """Submit what is not complete."""
        from datatrove.executor.slurm import SlurmPipelineExecutor

        before = None
        for job in jobs:
            before = SlurmPipelineExecutor(
                list(job.pipeline),
                tasks=job.tasks,
                time=self.time,
                partition=self.partition,
                workers=self.workers,
                cpus_per_task=self.cpus_per_task,
                mem_per_cpu_gb=self.mem_per_cpu_gb,
                qos=self.qos,
                venv_path=self.venv_path or str(Path(sys.prefix) / "bin" / "activate"),
                sbatch_args=self.sbatch_args,
                job_name=f"clean-{job.name}",
                logging_dir=str((logs / job.name).resolve()),
                depends=before,
            )
        assert before is not None
        before.run()  # submits those it depends on first
        return False


@dataclass(frozen=True)
class Ray(Executor):
    """Tasks run on a Ray cluster, to which ``RAY_ADDRESS`` leads; the output folder has to be on a shared disk."""

    workers: int = -1
    """Tasks that run at a time; -1: no limit"""
    cpus_per_task: int = 1
    mem_per_cpu_gb: float = 2
    """GB of memory for each processor"""

    def run(self, jobs: Sequence[Job], logs: Path) -> bool:
        """Run what is not complete."""
        from datatrove.executor.ray import RayPipelineExecutor

        for job in jobs:
            RayPipelineExecutor(
                list(job.pipeline),
                tasks=job.tasks,
                workers=self.workers,
                cpus_per_task=self.cpus_per_task,
                mem_per_cpu_gb=self.mem_per_cpu_gb,
                logging_dir=str((logs / job.name).resolve()),
            ).run()
        return True
