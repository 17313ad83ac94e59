"""Tasks of lm-evaluation-harness, run on align's models."""

import logging
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from align.evaluate.harness_model import HarnessModel
from align.evaluate.local_data import local_manager
from align.evaluate.result import Measure, Result
from align.evaluate.statistics import ratio_values
from align.evaluate.task import Subject

SETS: dict[str, tuple[str, ...]] = {
    "arc": ("arc_easy", "arc_challenge"),
    "truthfulqa": ("truthfulqa_mc1", "truthfulqa_mc2"),
}
"""Names for several of the harness's tasks; every other name is the harness's own (mmlu, hellaswag, winogrande, gsm8k,
ifeval ...)"""

_PER_UNIT = {
    "bits_per_byte": lambda ratio: -ratio / math.log(2),
    "byte_perplexity": lambda ratio: math.exp(-ratio),
    "word_perplexity": lambda ratio: math.exp(-ratio),
}
"""Metrics of whole texts, whose items are (log-likelihood, units): the metric of the ratio of their sums"""


@dataclass(frozen=True)
class HarnessSettings:
    """How the harness presents its tasks.

    Raises:
        ValueError: a setting is invalid.
    """

    include: str | None = None
    """Folder with further tasks as YAML files, which may read local data"""
    fewshot: int | None = None
    """Examples before each question; null: what each task is meant to have"""
    chat: Literal["auto", "yes", "no"] = "auto"
    """Render prompts with the model's chat template; auto: in tasks that sample responses, of models that have learnt
    their template"""
    data: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Files of tasks, in place of the Hub's; see ``parse_data``"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if self.fewshot is not None and self.fewshot < 0:
            raise ValueError(f"fewshot is {self.fewshot}; it must be at least 0")


def run_harness(
    subject: Subject, names: Sequence[str], settings: HarnessSettings, *, limit: int | None
) -> Iterator[tuple[list[Result], dict[str, Any]]]:
    """Run tasks one after the other.

    Args:
        subject: the model.
        names: of tasks, groups or ``SETS``.
        settings: how they are presented.
        limit: items of each task, from the first; None: all.

    Yields:
        tuple: results of a task (of a group also those of its parts), and what the harness itself returns for it.

    Raises:
        ValueError: there is no such task, its data can't be loaded, or the model can't do it.
    """
    names = [part for given in names for part in SETS.get(given, (given,))]
    if unasked := settings.data.keys() - set(names):
        raise ValueError(f"data is given for {', '.join(sorted(unasked))}, which is not among the tasks: {names}")
    manager = _manager(names, settings.include)
    model = HarnessModel(subject.network, subject.tokenizer, batch_size=subject.batch_size, seed=subject.seed)
    subject.folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name not in manager.all_tasks:
            raise ValueError(_unknown(name, manager.all_tasks, settings))
    with tempfile.TemporaryDirectory() as folder:
        local = local_manager(manager, settings.data, Path(folder), fewshot=settings.fewshot)
        for name in names:
            tasks = local if name in settings.data else manager
            with _explained(name):
                samples = _samples_responses(tasks, name)
            chat = settings.chat == "yes" or (settings.chat == "auto" and samples and subject.is_chat)
            with _explained(name):
                found = simple_evaluate(
                    model=model,
                    tasks=[name],
                    task_manager=tasks,
                    num_fewshot=settings.fewshot,
                    limit=limit,
                    apply_chat_template=chat,
                    # What is logged depends on the model and the request, which has the ids' text and all settings.
                    use_cache=str(subject.folder / f"harness-{subject.key}"),
                    bootstrap_iters=0,
                )
            assert found is not None
            yield results_of(found, chat=chat), found


def _manager(names: Sequence[str], include: str | None) -> TaskManager:
    """Where the tasks are found; the harness's own index, thousands of files, is read only if a name needs it."""
    if include is not None:
        manager = TaskManager(include_path=include, include_defaults=False)
        if set(names) <= set(manager.all_tasks):
            return manager
    return _whole_index(include)


@lru_cache(maxsize=1)
def _whole_index(include: str | None) -> TaskManager:
    return TaskManager(include_path=include)


def results_of(found: Mapping[str, Any], *, chat: bool) -> list[Result]:
    """The harness's results with the items behind every mean, so that models can be paired.

    Args:
        found: what ``simple_evaluate`` returned.
        chat: whether prompts were rendered with the chat template.
    """
    return [
        _result(name, numbers, found, chat=chat)
        for name, numbers in {**found["results"], **found.get("groups", {})}.items()
    ]


def _result(name: str, numbers: Mapping[str, Any], found: Mapping[str, Any], *, chat: bool) -> Result:
    parts = found.get("group_subtasks", {}).get(name) or [name]
    items = [item for part in _leaves(parts, found) for item in found["samples"].get(part, ())]
    measures = []
    for key, value in numbers.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float | np.number):
            continue
        better = found.get("higher_is_better", {}).get(name, {}).get(metric)
        values = _values([item for item in items if item["filter"] == chosen], metric, float(value))
        if values is not None:
            measures.append(Measure.of_items(key, values, higher_is_better=better))
        else:
            stderr = numbers.get(f"{metric}_stderr,{chosen}")
            known = float(stderr) if isinstance(stderr, int | float) else None
            measures.append(Measure(key, float(value), known, better, None))
    settings = {
        "chat": chat,
        "fewshot": found.get("n-shot", {}).get(name),
        "version": found.get("versions", {}).get(name),
        "items": len({item["doc_id"] for item in items}) if parts == [name] else None,
    }
    return Result(name, measures, items if parts == [name] else [], settings)


def _leaves(parts: Sequence[str], found: Mapping[str, Any]) -> Iterator[str]:
    """The tasks of a group, those of its groups included."""
    for part in parts:
        inner = found.get("group_subtasks", {}).get(part)
        yield from _leaves(inner, found) if inner else (part,)


def _values(items: Sequence[Mapping[str, Any]], metric: str, total: float) -> np.ndarray | None:
    """One number per item whose mean is the harness's; None where the metric is not of that kind."""
    given = [item[metric] for item in items if metric in item]
    if not given:
        return None
    if metric in _PER_UNIT and all(isinstance(one, tuple | list) and len(one) == 2 for one in given):
        logprobs, units = np.array(given, float).T
        ratio = float(logprobs.sum() / units.sum())
        slope = (_PER_UNIT[metric](ratio + 1e-6) - _PER_UNIT[metric](ratio - 1e-6)) / 2e-6
        values = _PER_UNIT[metric](ratio) + slope * (ratio_values(logprobs[None], units[None])[0] - ratio)
    elif all(isinstance(one, bool | int | float | np.number) for one in given):
        values = np.array(given, float)
    else:
        return None
    return values if math.isclose(float(values.mean()), total, rel_tol=1e-6, abs_tol=1e-9) else None


def _samples_responses(manager: TaskManager, name: str) -> bool:
    """Whether a task, or a part of a group, samples responses."""
    loaded = manager.load([name])
    return any(task.get_config("output_type") == "generate_until" for task in loaded["tasks"].values())


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Errors of the harness and of its data sets in one line that names the task; its log only of warnings."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    except ImportError as error:
        package = error.name or str(error)
        raise ValueError(
            f"task {name} needs the package {package}, which is not installed; "
            f'pip install "lightning-align[eval]" has those of IFEval, pip install {package} may have others'
        ) from error
    except LookupError as error:
        if type(error) is not LookupError:  # not one of NLTK, about its data
            raise
        found = re.search(r"nltk\.download\('(\w+)'\)", str(error))
        data = found[1] if found else "punkt_tab"
        raise ValueError(f"task {name} needs NLTK's data: python -m nltk.downloader {data}") from error
    except (OSError, ConnectionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"task {name}: its data can't be loaded ({reason}); without a connection give local files "
            f"(--data {name}=FILE)"
        ) from error
    finally:
        log.setLevel(level)


def _unknown(name: str, known: Sequence[str], settings: HarnessSettings) -> str:
    import difflib

    near = difflib.get_close_matches(name, [*known, *SETS], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    where = "" if settings.include is None else f" or {settings.include}"
    return f"no task {name!r} in lm-evaluation-harness{where}{hint}"
