"""Functional correctness: programs that the model writes, run against unit tests (HumanEval's format)."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from align.evaluate.result import Measure, Result
from align.evaluate.scored import sampled_texts
from align.evaluate.task import EvalTask, Subject
from align.execution import Limits, run_program
from align.generation.sampling_config import SamplingConfig
from align.io.progress import progress_bar
from align.rewards.programs import code_of

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@")
"""What ends a function that continues its head (Chen et al. 2021, section 2.1)"""


class Problem(NamedTuple):
    """A function to write.

    Attributes:
        task_id: its name.
        prompt: imports, the head of the function and its docstring.
        entry_point: name of the function.
        test: source of ``check(candidate)``.
    """

    task_id: str
    prompt: str
    entry_point: str
    test: str

    @classmethod
    def of(cls, record: Mapping[str, object]) -> "Problem":
        """A record of HumanEval.

        Raises:
            ValueError: a field is missing or not a text.
        """
        for field in cls._fields:
            if not isinstance(record.get(field), str):
                raise ValueError(f"field {field!r} must be a text, found {record.get(field)!r}")
        return cls(*(str(record[field]) for field in cls._fields))


@dataclass(frozen=True)
class Programs(EvalTask):
    """pass@k: the probability that at least one of k programs passes its tests (Chen et al. 2021, equation 1).

    A model that continues text gets the head of the function, one that answers chats a request to complete it.

    Raises:
        ValueError: a setting is invalid.
    """

    problems: Sequence[Problem]
    """Functions to write"""
    n: int = 1
    """Programs for each"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_new_tokens=512)  # noqa: RUF009 (frozen)
    """How they are sampled"""
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    """What a program may use"""
    workers: int = 2
    """Programs that run at a time"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if self.n < 1 or self.workers < 1:
            raise ValueError(f"n is {self.n} and workers {self.workers}; both must be at least 1")
        if not self.problems:
            raise ValueError("there are no problems")

    def run(self, subject: Subject, *, limit: int | None) -> Result:
        """See ``EvalTask``."""
        problems = list(self.problems[:limit])
        chat = subject.is_chat
        prompts = [_request(problem) if chat else problem.prompt for problem in problems]
        rows = sampled_texts(subject, prompts, n=self.n, sampling=self.sampling, raw=not chat)
        programs = [
            _program(problem, code_of(text) if chat else _continued(problem, text))
            for problem, row in zip(problems, rows, strict=True)
            for text, _ in row
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


def _request(problem: Problem) -> str:
    return f"Complete this Python function. Respond with the whole function.\n\n```python\n{problem.prompt}```"


def _continued(problem: Problem, text: str) -> str:
    """The head of the function with its continuation, up to where something else begins."""
    for stop in STOPS:
        text = text.partition(stop)[0]
    return problem.prompt + text


def _program(problem: Problem, code: str) -> str:
    # The prompt's imports, which a response may have left out.
    imports = "".join(line + "\n" for line in problem.prompt.splitlines() if line.startswith(("import ", "from ")))
    return f"{imports}{code}\n{problem.test}\ncheck({problem.entry_point})\n"
