"""The settings of evaluation tasks by name, for the verbs that run them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from align.cli.errors import UsageError
from align.cli.settings import setting
from align.generation.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from align.evaluate.programs import Programs
    from align.evaluate.result import Result
    from align.evaluate.task import Subject

Run = Callable[["Subject", Sequence[str], int | None], Iterator[tuple[list["Result"], dict[str, Any]]]]
"""(model, names of tasks, items of each) -> results of each task, and what the harness returns for its own"""

GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=512)
"""How programs are sampled by default"""

PROGRAM_SETS: dict[str, tuple[str, ...]] = {
    "humaneval": ("openai/openai_humaneval:test",),
    "mbpp": ("google-research-datasets/mbpp@full:prompt", "google-research-datasets/mbpp@full:test"),
}
"""Tasks whose programs align runs shut in, where lm-evaluation-harness would run them unprotected: name -> data sets on
the Hub"""


@dataclass(frozen=True)
class HarnessFlags:
    """How tasks by name are found and presented."""

    include: str | None = None
    """Folder with further tasks as YAML files of lm-evaluation-harness, which may read local data"""
    fewshot: int | None = None
    """Examples before each question; null: what each task is meant to have"""
    chat: Literal["auto", "yes", "no"] = "auto"
    """Render prompts with the chat template; auto: in tasks that sample responses, of models that have learnt their
    template; lm_eval has a flag --apply_chat_template"""
    data: tuple[str, ...] = setting((), metavar="TASK[:SPLIT]=FILE")
    """Local data of a task in place of the Hub's: a file for the split that it evaluates or for SPLIT, or a folder with
    a file per split, or a copy of the data set's repository"""
    allow_code_execution: bool = False
    """Run programs that models write (humaneval, mbpp, --programs) on this machine, shut in as far as the system allows
    (docs/evaluate.md)"""

    def check(self, flag: str, names: Sequence[str]) -> None:
        """Refuse to run what was not allowed, before anything is evaluated.

        Args:
            flag: that names tasks.
            names: the tasks.

        Raises:
            ValueError: a task runs programs, which ``allow_code_execution`` doesn't allow.
        """
        if not self.allow_code_execution and (running := [name for name in names if name in PROGRAM_SETS]):
            raise ValueError(
                f"{flag} {running[0]} runs programs that a model wrote; add --allow_code_execution to allow it"
            )

    def load(self, flag: str, *, n: int = 1, sampling: SamplingConfig = GREEDY) -> Run:
        """The function that runs tasks.

        Args:
            flag: that names tasks, for errors.
            n: programs for each problem of humaneval and mbpp.
            sampling: of these programs.
        """

        def run(
            subject: "Subject", names: Sequence[str], limit: int | None
        ) -> Iterator[tuple[list["Result"], dict[str, Any]]]:
            of_harness = [name for name in names if name not in PROGRAM_SETS]
            if of_harness:
                yield from self._harness(flag)(subject, of_harness, limit)
            for name in names:
                if name in PROGRAM_SETS:
                    yield [self._programs(name, n, sampling).run(subject, limit=limit)], {}

        return run

    def _programs(self, name: str, n: int, sampling: SamplingConfig) -> "Programs":
        from align.cli.text_files import read_problems
        from align.evaluate.programs import Programs

        given = [word.partition("=")[2] for word in self.data if word.partition("=")[0] == name]
        return Programs(read_problems(given or PROGRAM_SETS[name]), n=n, sampling=sampling, label=name)

    def _harness(self, flag: str) -> Run:
        """Tasks of lm-evaluation-harness.

        Raises:
            UsageError: it is not installed.
        """
        os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars; align has its own
        try:
            from align.evaluate.harness_tasks import HarnessSettings, run_harness
            from align.evaluate.local_data import parse_data
        except ImportError as error:
            raise UsageError(
                f'{flag} needs lm-evaluation-harness ({error}): pip install "lightning-align[eval]"'
            ) from error
        data = parse_data([word for word in self.data if word.partition("=")[0] not in PROGRAM_SETS])
        settings = HarnessSettings(self.include, self.fewshot, self.chat, data)
        return lambda subject, names, limit: run_harness(subject, names, settings, limit=limit)
