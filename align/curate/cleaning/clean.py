"""Run a recipe: check that a folder belongs to it, run what is not complete, write the report, put the corpus in place.

The last job writes the report and renames ``work/corpus`` to ``corpus``, so that a corpus in place is whole. It runs
where the others run: on a cluster too, after the command that submitted it has ended.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers.base import BaseDiskReader

from align.curate.cleaning.account import account_of
from align.curate.cleaning.page import as_html
from align.curate.cleaning.passes import Plan, plan
from align.curate.cleaning.recipe import CleanRecipe
from align.curate.cleaning.steps import CorpusStep, Job
from align.curate.cleaning.text import as_markdown
from align.io.atomic import replacing_file

_RECORD = "recipe.json"


def clean(recipe: CleanRecipe, settings: dict[str, Any]) -> bool:
    """Make a corpus, or finish one.

    Args:
        recipe: what to do.
        settings: the same as JSON values, without where it runs: another value is another corpus.

    Returns:
        bool: whether it is done; False if it was submitted to a cluster.

    Raises:
        ValueError: the folder belongs to other settings or other files, or a source has no files.
    """
    out = Path(recipe.out)
    facts = {
        "settings": settings,
        "files": {name: _files(name, one.reader, out) for name, one in recipe.sources.items()}
        | {type(step).__name__: step.inputs() for step in recipe.steps if isinstance(step, CorpusStep)},
    }
    _claim(out, facts)
    finished = out / "logs" / "finish" / "completions" / "00000"
    if finished.exists() and not (out / "corpus").exists():
        raise ValueError(f"{out / 'corpus'} was made and is gone: delete {out} to make it again")
    made = plan(recipe)
    finish = Job("finish", [_Finish(made, out, title=Path(recipe.out).name)], 1)
    return recipe.executor.run([*made.jobs, finish], out / "logs") or finished.exists()


def _files(name: str, reader: PipelineStep, out: Path) -> dict[str, Any]:
    """Path to size and time of change of a source's files.

    Raises:
        ValueError: there are none, or the output would be among them.
    """
    if not isinstance(reader, BaseDiskReader):
        return {}
    folder = reader.data_folder
    if not folder.exists(""):
        raise ValueError(f"sources.{name}.reader: {folder.path}: no such folder")
    if folder.is_local() and out.resolve().is_relative_to(Path(folder.path).resolve()):
        raise ValueError(
            f"{out} is in {folder.path}, which sources.{name}.reader reads, so the next run would read what this one "
            "wrote: choose an --out outside it"
        )
    found = folder.list_files(glob_pattern=reader.glob_pattern, recursive=reader.recursive)
    suffixes = getattr(reader, "suffixes", None)
    files = {path: _stamp(folder, path) for path in found if suffixes is None or path.endswith(suffixes)}
    if not files:
        wanted = reader.glob_pattern or suffixes or "any"
        raise ValueError(f"sources.{name}.reader: {folder.path} has no files ({wanted})")
    return files


def _stamp(folder: Any, path: str) -> list[Any]:
    facts = folder.info(path)
    return [facts.get("size"), facts.get("mtime") or facts.get("ETag")]


def _claim(out: Path, facts: dict[str, Any]) -> None:
    """Note what a folder is made from.

    Raises:
        ValueError: it is made from something else.
    """
    record, facts = out / _RECORD, json.loads(json.dumps(facts))
    if record.is_file():
        known = json.loads(record.read_text())
        if known == facts:
            return
        part = "settings" if known.get("settings") != facts["settings"] else "files"
        changed = _difference(known.get(part, {}), facts[part])
        raise ValueError(
            f"{out} was begun with other {part} ({changed}): choose another --out, or delete {out} to start over"
        )
    if out.is_dir() and any(path.name != ".lock" for path in out.iterdir()):
        raise ValueError(f"{out} has files but no {_RECORD}: choose another --out")
    with replacing_file(record) as file:
        json.dump(facts, file, indent=1)


def _difference(known: Any, given: Any, place: str = "") -> str:
    """Where two JSON values differ first."""
    if isinstance(known, dict) and isinstance(given, dict):
        for name in [*known, *(name for name in given if name not in known)]:
            if known.get(name) != given.get(name):
                return _difference(known.get(name), given.get(name), f"{place}.{name}" if place else name)
    return place or "all"


class _Finish(PipelineStep):
    """Writes the report and puts the corpus in place."""

    type = "report"
    name = "finish"

    def __init__(self, made: Plan, out: Path, *, title: str) -> None:
        super().__init__()
        # Blocks are not needed to read their statistics, and may not be small.
        self.made = Plan([Job(job.name, [], job.tasks) for job in made.jobs], made.stages)
        self.out, self.title = out, title

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        account = account_of(self.made, self.out)
        written = {
            "report.json": json.dumps(account.as_dict(), ensure_ascii=False, indent=1),
            "report.md": as_markdown(account, title=self.title),
            "report.html": as_html(account, title=self.title),
        }
        for name, text in written.items():
            with replacing_file(self.out / name) as file:
                file.write(text)
        work = self.out / "work"
        (work / "corpus").mkdir(parents=True, exist_ok=True)  # nothing was kept
        if not (self.out / "corpus").exists():
            (work / "corpus").rename(self.out / "corpus")
        shutil.rmtree(work)
        yield from ()
