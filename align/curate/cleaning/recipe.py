"""The recipe of ``align data clean``."""

import re
from dataclasses import dataclass, field

from datatrove.pipeline.base import PipelineStep

from align.curate.cleaning.executors import Executor, Local
from align.curate.cleaning.steps import CorpusStep

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Source:
    """Files of one kind, and what is done to them alone."""

    reader: PipelineStep
    """Reads documents: TextFiles, JsonLines or WikipediaDump of align.curate.cleaning, or datatrove's WarcReader (WARC
    and WET), ParquetReader"""
    steps: list[PipelineStep] = field(default_factory=list)
    """Extraction and filters for this source only, in order"""


@dataclass(frozen=True, kw_only=True)
class CleanRecipe:
    """Make a corpus from raw files: read, filter, deduplicate, decontaminate, mask; report what each step removed.

    Run the same command again after an interruption: what is complete is not done again. The result is the same
    whatever runs it, with however many workers.

    Raises:
        ValueError: a setting is invalid.
    """

    out: str
    """Folder of the result: corpus/train and corpus/val (JSONL, gzip), report.md, report.html, report.json, and what
    was removed, by step"""
    inputs: str = "."
    """Folder of the raw files: recipes name it as ${inputs}"""
    sources: dict[str, Source]
    """Name -> what is read"""
    steps: list[CorpusStep | PipelineStep] = field(default_factory=list)
    """What is done to all documents, in order: filters and formatters of datatrove and align.curate.cleaning, and
    ExactDuplicates, NearDuplicates and Decontaminate of the latter"""
    validation: float = 0.01
    """Share of the documents that goes to corpus/val, chosen by the hash of the text"""
    tasks: int = 8
    """Shares into which the files are divided. The result depends on it only in which of several duplicates is kept"""
    keep_removed: bool = True
    """Keep the removed documents in OUT/removed/STEP, with the reason"""
    executor: Executor = Local()
    """Where it runs: Local, Slurm or Ray of align.curate.cleaning"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if not self.sources:
            raise ValueError("sources is empty: name what is to be read")
        for name in self.sources:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"sources: {name!r} names a folder: letters, digits, hyphens, points and underscores only"
                )
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}; it must be at least 0 and below 1")
        if self.tasks < 1:
            raise ValueError(f"tasks is {self.tasks}; it must be at least 1")
