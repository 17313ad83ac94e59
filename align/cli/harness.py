"""The settings of lm-evaluation-harness's tasks, for the verbs that run them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from align.cli.errors import UsageError

if TYPE_CHECKING:
    from align.evaluate.result import Result
    from align.evaluate.task import Subject

Run = Callable[["Subject", Sequence[str], int | None], Iterator[tuple[list["Result"], dict[str, Any]]]]
"""(model, names of tasks, items of each) -> results of each task, and what the harness returns for it"""


@dataclass(frozen=True)
class HarnessFlags:
    """How the tasks of lm-evaluation-harness are found and presented."""

    include: str | None = None
    """Folder with further tasks as YAML files of lm-evaluation-harness, which may read local data"""
    fewshot: int | None = None
    """Examples before each question; null: what each task is meant to have"""
    chat: Literal["auto", "yes", "no"] = "auto"
    """Render prompts with the chat template; auto: in tasks that sample responses, of models that have learnt their
    template; lm_eval has a flag --apply_chat_template"""

    def load(self, flag: str) -> Run:
        """The function that runs tasks.

        Args:
            flag: that names tasks, for the error.

        Raises:
            UsageError: the harness is not installed.
        """
        os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars; align has its own
        try:
            from align.evaluate.harness_tasks import HarnessSettings, run_harness
        except ImportError as error:
            raise UsageError(
                f'{flag} needs lm-evaluation-harness ({error}): pip install "lightning-align[eval]"'
            ) from error
        settings = HarnessSettings(self.include, self.fewshot, self.chat)
        return lambda subject, names, limit: run_harness(subject, names, settings, limit=limit)
