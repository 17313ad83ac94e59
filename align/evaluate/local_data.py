"""Local files in place of the data sets that lm-evaluation-harness's tasks load from the Hub."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_EXAMPLES = ("fewshot_split", "training_split", "validation_split", "test_split")
"""Fields that name splits, in the order in which the harness looks for examples"""


def parse_data(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """Task -> split -> file or folder; the split "" is the one that the task evaluates.

    Args:
        words: ``TASK=PATH`` or ``TASK:SPLIT=PATH``.

    Raises:
        ValueError: a word has another form, or there is no such file.
    """
    found: dict[str, dict[str, str]] = {}
    for word in words:
        name, equals, path = word.partition("=")
        task, _, split = name.partition(":")
        if not task or not equals:
            raise ValueError(f"data is {word!r}; give TASK=FILE, TASK:SPLIT=FILE or TASK=FOLDER")
        if not Path(path).exists():
            raise ValueError(f"data of {task}: {path} does not exist")
        if Path(path).is_file() and Path(path).suffix not in _BUILDERS:
            raise ValueError(f"data of {task}: {path} ends in none of {', '.join(_BUILDERS)}")
        found.setdefault(task, {})[split] = str(Path(path).resolve())
    return found


def local_manager(
    manager: TaskManager, data: Mapping[str, Mapping[str, str]], folder: Path, *, fewshot: int | None
) -> TaskManager:
    """A manager of tasks that are those of another one, but read local files.

    Args:
        manager: knows the tasks.
        data: see ``parse_data``.
        folder: empty; the tasks are written there as YAML files that include the harness's own.
        fewshot: examples before each question; None: what each task is meant to have.

    Raises:
        ValueError: a task's files lack a split that it reads.
    """
    for task, paths in data.items():
        for name in _members(manager, task):
            entry = manager.task_index[name]
            changed: dict[str, Any] = {"include": str(entry.yaml_path)}
            if entry.kind.name == "TASK":
                config = entry.cfg or {}
                shots = fewshot if fewshot is not None else config.get("num_fewshot") or 0
                changed |= {"task": name} | _changes(name, config, paths, shots)
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(changed, sort_keys=False), encoding="utf-8")
    return TaskManager(include_path=str(folder), include_defaults=False)


def _members(manager: TaskManager, name: str) -> Iterator[str]:
    """A task; of a group or tag also what it consists of."""
    entry = manager.task_index[name]
    if entry.kind.name == "PY_TASK":
        raise ValueError(f"data of {name}: the task is Python code that loads its own data")
    if entry.kind.name != "TAG":
        yield name
    parts = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    for part in parts if isinstance(parts, list) else ():
        yield from _members(manager, part if isinstance(part, str) else part.get("task") or part["group"])


def _changes(task: str, config: Mapping[str, Any], paths: Mapping[str, str], shots: int) -> dict[str, Any]:
    """Fields of a task's configuration that make it read the files."""
    evaluated = str(config.get("test_split") or config.get("validation_split"))
    base, name = paths.get(""), config.get("dataset_name")
    if base is not None and Path(base).is_dir():
        if (Path(base) / "README.md").is_file():
            return {"dataset_path": base}  # a copy of the data set's repository, which says what its files are
        inner = Path(base) / str(name)
        files = {file.stem: str(file) for file in sorted((inner if inner.is_dir() else Path(base)).iterdir())}
        given = {split: file for split, file in files.items() if Path(file).suffix in _BUILDERS}
    else:
        given = {evaluated: base} if base is not None else {}
    given |= {split: file for split, file in paths.items() if split}
    if evaluated not in given:
        raise ValueError(f"data of {task}: the split {evaluated!r}, which it evaluates, is not among {sorted(given)}")
    samples = (config.get("fewshot_config") or {}).get("samples")
    source = next(config[split] for split in _EXAMPLES if config.get(split))
    if shots and not samples and source not in given:
        raise ValueError(
            f"data of {task}: it reads {shots} examples from the split {source!r}; give {task}:{source}=FILE, or set "
            "fewshot to 0"
        )
    builders = {_BUILDERS[Path(file).suffix] for file in given.values()}
    if len(builders) > 1:
        raise ValueError(f"data of {task}: its files are of several types: {', '.join(sorted(given.values()))}")
    return {
        "dataset_path": builders.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": given},
        **{split: config[split] if config.get(split) in given else None for split in _EXAMPLES},
    }
