"""What a recipe's steps are made of: jobs of datatrove, and steps that have to see the whole corpus."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from align.io.memory import peak_memory_mib


@dataclass(frozen=True)
class Job:
    """A pipeline that an executor runs as a number of tasks, each on its share of the files."""

    name: str
    """Of the folder of its logs"""
    pipeline: Sequence[PipelineStep]
    tasks: int


class CorpusStep(ABC):
    """A step that decides about a document by what else there is. Subclass it as a frozen dataclass of settings.

    Attributes:
        reads_corpus: whether ``collect`` has to have seen all documents before ``remove`` sees the first.
    """

    reads_corpus: ClassVar[bool] = True

    def inputs(self) -> dict[str, str]:
        """Name to fingerprint of the files that the step reads: others make another corpus."""
        return {}

    def collect(self, folder: Path) -> Sequence[PipelineStep]:
        """Blocks that note what they need of every document, at the end of a pass.

        Args:
            folder: of the step's own files.
        """
        return ()

    @abstractmethod
    def jobs(self, folder: Path) -> Sequence[Job]:
        """What runs between ``collect`` and ``remove``.

        Args:
            folder: of the step's own files.
        """

    @abstractmethod
    def remove(self, folder: Path) -> PipelineStep:
        """The block that drops documents; it has an ``exclusion_writer``.

        Args:
            folder: of the step's own files.
        """


class Meter(PipelineStep):
    """Counts the documents and UTF-8 bytes that pass, and the worker's peak of memory so far."""

    type = "meter"

    def __init__(self, label: str) -> None:
        """Start at nothing.

        Args:
            label: of the step before it.
        """
        self.name = label
        super().__init__()

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents, unchanged."""
        for document in data:
            self.stat_update("documents")
            self.stat_update("bytes", value=len(document.text.encode("utf-8", "surrogatepass")))
            yield document
        self.stat_update("peak_mib", value=peak_memory_mib() or 0)
