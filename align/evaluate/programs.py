"""Functional correctness: programs that the model writes, run against unit tests."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from align.evaluate.problems import Problem
from align.evaluate.result import Measure, Result
from align.evaluate.scored import sampled_texts
from align.evaluate.task import EvalTask, Subject
from align.execution import Limits, run_program
from align.generation.sampling_config import SamplingConfig
from align.io.progress import progress_bar


@dataclass(frozen=True)
class Programs(EvalTask):
    """pass@k: the probability that at least one of k programs passes its tests (Chen et al. 2021, equation 1).

    A model that continues text gets the beginning of the program, one that answers chats a request to write it.

    Raises:
        ValueError: a setting is invalid.
    """

    problems: Sequence[Problem]
    """Programs to write"""
    n: int = 1
    """Programs for each"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_new_tokens=512)  # noqa: RUF009 (frozen)
    """How they are sampled"""
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    """What a program may use"""
    workers: int = 2
    """Programs that run at a time"""
    label: str = "Programs"
    """What results call the task"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if self.n < 1 or self.workers < 1:
            raise ValueError(f"n is {self.n} and workers {self.workers}; both must be at least 1")
        if not self.problems:
            raise ValueError("there are no problems")

    @property
    def name(self) -> str:
        """See ``EvalTask``."""
        return self.label

    def run(self, subject: Subject, *, limit: int | None) -> Result:
        """See ``EvalTask``."""
        problems = list(self.problems[:limit])
        chat = subject.is_chat
        prompts = [problem.request if chat else problem.prompt for problem in problems]
        stops = () if chat else tuple(dict.fromkeys(stop for problem in problems for stop in problem.stops))
        rows = sampled_texts(subject, prompts, n=self.n, sampling=self.sampling, raw=not chat, stops=stops)
        programs = [
            problem.program(text, chat=chat) for problem, row in zip(problems, rows, strict=True) for text, _ in row
        ]
        with progress_bar("programs", len(programs)) as advance, ThreadPoolExecutor(self.workers) as pool:
            outcomes = []
            for outcome in pool.map(lambda program: run_program(program, self.limits), programs):
                outcomes.append(outcome)
                advance(1)
        passed = np.array([outcome.passed for outcome in outcomes]).reshape(len(problems), self.n)
        items = [
            {
                "doc_id": number,
                "task_id": problem.task_id,
                "resps": [text for text, _ in rows[number]],
                "passed": passed[number].tolist(),
                "reasons": [outcome.reason for outcome in outcomes[number * self.n : (number + 1) * self.n]],
            }
            for number, problem in enumerate(problems)
        ]
        measures = [
            Measure.of_items(f"pass@{k},none", pass_at_k(passed, k), higher_is_better=True)
            for k in (1, 10, 100)
            if k <= self.n
        ]
        settings = {"n": self.n, "chat": chat, **asdict(self.sampling), "limits": asdict(self.limits)}
        return Result(self.name, measures, items, settings | {"missing_protections": outcomes[0].missing})


def pass_at_k(passed: np.ndarray, k: int) -> np.ndarray:
    """The unbiased estimate of pass@k for each problem, ``1 - C(n - c, k) / C(n, k)``.

    Args:
        passed: ``[P, n]`` bool.
        k: at most n.

    Returns:
        ``[P]``.
    """
    n, correct = passed.shape[1], passed.sum(1)
    failures = np.arange(n - k + 1, n + 1)
    return np.array([1.0 - np.prod(np.clip(1.0 - c / failures, 0.0, 1.0)) if n - c >= k else 1.0 for c in correct])
