"""From a recipe to jobs.

1. Each source is read, with its own steps, into ``work/0/SOURCE``.
2. The steps for all documents run in passes. A step that has to see the whole corpus ends a pass: the documents are
   written, with what the step notes of each; its own jobs run; the next pass begins with what it removes.
3. The last pass writes ``work/corpus``.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from align.curate.cleaning.recipe import CleanRecipe
from align.curate.cleaning.steps import CorpusStep, Job, Meter

_FILE = 1 << 28
"""Bytes after which a new file of what was read begins, so that one large file becomes several shares"""


class Stage(NamedTuple):
    """A step of the recipe, for the report.

    Attributes:
        label: unique; of its meter and of the folder of what it removed.
        source: that it is applied to; None: all.
        job: with its meter, which follows its last block.
        jobs: names of jobs that do only its work.
        noted: job that ends with blocks of its own, and their number.
    """

    label: str
    source: str | None
    job: str
    jobs: tuple[str, ...] = ()
    noted: tuple[str, int] | None = None


class Plan(NamedTuple):
    """What a recipe makes.

    Attributes:
        jobs: in order.
        stages: in order.
    """

    jobs: list[Job]
    stages: list[Stage]


def plan(recipe: CleanRecipe) -> Plan:
    """The jobs of a recipe.

    Args:
        recipe: as read; its blocks become part of the jobs.
    """
    return _Planner(recipe).plan()


class _Planner:
    def __init__(self, recipe: CleanRecipe) -> None:
        self.recipe, self.out = recipe, Path(recipe.out)
        self.work = self.out / "work"
        self.jobs: list[Job] = []
        self.stages: list[Stage] = []
        self.labels = set[str]()

    def plan(self) -> Plan:
        for name, source in self.recipe.sources.items():
            self._read(name, source.reader, source.steps)
        documents, number = self.work / "0", 1
        blocks: list[PipelineStep] = [_reader(documents)]
        for step in self.recipe.steps:
            label = self._label(step)
            if not isinstance(step, CorpusStep):
                blocks += self._metered(step, Stage(label, None, f"pass-{number}"))
                continue
            folder, noted = self.work / label, None
            if step.reads_corpus:
                if len(blocks) > 1:  # else they stand where they were read from
                    documents = self.work / str(number)
                    blocks.append(_writer(documents))
                notes = step.collect(folder)
                noted = (f"pass-{number}", len(notes))
                self.jobs.append(Job(f"pass-{number}", [*blocks, *notes], self.recipe.tasks))
                number, blocks = number + 1, [_reader(documents)]
            own = [Job(f"{label}-{one.name}", one.pipeline, one.tasks) for one in step.jobs(folder)]
            self.jobs += own
            stage = Stage(label, None, f"pass-{number}", tuple(one.name for one in own), noted)
            blocks += self._metered(step.remove(folder), stage)
        blocks += [Split(self.recipe.validation), _writer(self.work / "corpus", "${split}/${rank}.jsonl")]
        self.jobs.append(Job(f"pass-{number}", blocks, self.recipe.tasks))
        return Plan(self.jobs, self.stages)

    def _read(self, name: str, reader: PipelineStep, steps: Sequence[PipelineStep]) -> None:
        job = f"read-{name}"
        blocks = [*self._metered(reader, Stage(self._label("read", name), name, job)), _Named(name)]
        for step in steps:
            blocks += self._metered(step, Stage(self._label(step, name), name, job))
        blocks.append(_writer(self.work / "0" / name, size=_FILE))
        self.jobs.append(Job(job, blocks, self.recipe.tasks))

    def _metered(self, step: PipelineStep, stage: Stage) -> list[PipelineStep]:
        if self.recipe.keep_removed and hasattr(step, "exclusion_writer"):
            step.exclusion_writer = _writer(self.out / "removed" / stage.label)
        self.stages.append(stage)
        return [step, Meter(stage.label)]

    def _label(self, step: object, source: str | None = None) -> str:
        kind = step if isinstance(step, str) else type(step).__name__
        name = kind if source is None else f"{source}-{kind}"
        label, count = name, 1
        while label in self.labels:
            count += 1
            label = f"{name}-{count}"
        self.labels.add(label)
        return label


def _reader(folder: Path) -> JsonlReader:
    return JsonlReader(str(folder), add_file_path=False)


def _writer(folder: Path, name: str = "${rank}.jsonl", *, size: int = -1) -> JsonlWriter:
    return JsonlWriter(str(folder), name, compression="gzip", max_file_size=size)


class _Named(PipelineStep):
    """Notes the source in the metadata."""

    type = "formatter"

    def __init__(self, source: str) -> None:
        self.name = f"source {source}"
        super().__init__()
        self.source = source

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            document.metadata["source"] = self.source
            yield document


class Split(PipelineStep):
    """Notes the split in the metadata: the same text goes to the same one whatever else there is.

    Its statistics count the documents and bytes of each.
    """

    type = "formatter"
    name = "split"

    def __init__(self, validation: float) -> None:
        """Divide.

        Args:
            validation: share of the documents.
        """
        super().__init__()
        self.validation = validation

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents, with ``split`` in their metadata."""
        for document in data:
            text = document.text.encode("utf-8", "surrogatepass")
            share = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
            split = "val" if share < self.validation else "train"
            document.metadata["split"] = split
            self.stat_update(f"{split}_documents")
            self.stat_update(f"{split}_bytes", value=len(text))
            yield document
