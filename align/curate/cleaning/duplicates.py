"""Exact and near duplicates over the whole corpus, by datatrove's blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.exact_dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
)
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)

from align.curate.cleaning.steps import CorpusStep, Job
from align.curate.cleaning.words import Words


def _content(document: Document) -> str:
    return document.text


@dataclass(frozen=True)
class ExactDuplicates(CorpusStep):
    """Keeps one of all documents with the same text, told by a 64-bit hash."""

    def collect(self, folder: Path) -> Sequence[PipelineStep]:
        """The hashes of a task's documents, sorted."""
        return [ExactDedupSignature(str(folder / "signatures"), self._config())]

    def jobs(self, folder: Path) -> Sequence[Job]:
        """Merge the sorted hashes."""
        find = ExactFindDedups(str(folder / "signatures"), str(folder / "duplicates"), self._config())
        return [Job("find", [find], 1)]

    def remove(self, folder: Path) -> PipelineStep:
        """Drop what was found."""
        return ExactDedupFilter(str(folder / "duplicates"), self._config())

    def _config(self) -> ExactDedupConfig:
        return ExactDedupConfig(content_getter=_content)


@dataclass(frozen=True)
class NearDuplicates(CorpusStep):
    """Keeps one of each cluster of documents that resemble each other (MinHash, Broder 1997).

    A text is the set of its runs of ``n_grams`` words, without case, punctuation and digits. Two texts with Jaccard
    similarity s become a pair with probability ``1 - (1 - s^hashes_per_bucket)^num_buckets``: by default 0.56 at 0.7,
    0.92 at 0.8, 1.00 at 0.9. Clusters are what pairs connect.
    """

    n_grams: int = 5
    """Words of a run"""
    num_buckets: int = 14
    """Bands of the signature; that of a pair is equal in at least one"""
    hashes_per_bucket: int = 8
    """Hashes of a band"""

    def __post_init__(self) -> None:
        """Reject invalid settings.

        Raises:
            ValueError: a setting is below 1.
        """
        for name in ("n_grams", "num_buckets", "hashes_per_bucket"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def collect(self, folder: Path) -> Sequence[PipelineStep]:
        """The signatures of a task's documents, sorted by band."""
        return [MinhashDedupSignature(str(folder / "signatures"), self._config(), language=Words())]

    def jobs(self, folder: Path) -> Sequence[Job]:
        """Find pairs in every band, then connect them."""
        pairs = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "pairs"), config=self._config())
        clusters = MinhashDedupCluster(str(folder / "pairs"), str(folder / "remove"), config=self._config())
        return [Job("pairs", [pairs], self.num_buckets), Job("clusters", [clusters], 1)]

    def remove(self, folder: Path) -> PipelineStep:
        """Drop all but one document of each cluster."""
        return MinhashDedupFilter(str(folder / "remove"))

    def _config(self) -> MinhashConfig:
        return MinhashConfig(self.n_grams, self.num_buckets, self.hashes_per_bucket)
