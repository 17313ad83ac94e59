"""Drop documents that contain items of evaluation sets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import ngrams, simplify_text

from align.curate.cleaning.steps import CorpusStep, Job
from align.curate.cleaning.words import Words
from align.data.readers import BadRecords, find_sources


@dataclass(frozen=True)
class EvaluationSet:
    """Where an evaluation set's texts are."""

    files: str | list[str]
    """Files, globs or Hub ids, as in the recipes of training"""
    fields: list[str]
    """Columns whose texts must not be in the corpus, such as [question, answer]"""


@dataclass(frozen=True)
class Decontaminate(CorpusStep):
    """Drops documents that share a run of words with a text of an evaluation set.

    Brown et al. 2020, "Language models are few-shot learners", appendix C, which takes runs of 13 words; case,
    punctuation and digits don't count. An item of fewer words can't be found.
    """

    reads_corpus: ClassVar[bool] = False

    sets: dict[str, EvaluationSet]
    """Name -> evaluation set"""
    n_grams: int = 13
    """Words of a run"""

    def __post_init__(self) -> None:
        """Reject invalid settings.

        Raises:
            ValueError: no set, or runs of no words.
        """
        if not self.sets or self.n_grams < 1:
            raise ValueError(f"sets is {self.sets} and n_grams {self.n_grams}: name a set, and at least one word")

    def inputs(self) -> dict[str, str]:
        """The files of all sets."""
        sources = [source for wanted in self.sets.values() for source in find_sources(wanted.files)]
        return {source.name: source.fingerprint() for source in sources}

    def jobs(self, folder: Path) -> Sequence[Job]:
        """Hash the runs of words of all sets."""
        return [Job("index", [_Index(folder, self.sets, self._config())], 1)]

    def remove(self, folder: Path) -> PipelineStep:
        """Drop documents with a run of an index; the run and the set are in the metadata of what was removed."""
        return NGramsDecontFilter(str(folder), self._config(), language=Words())

    def _config(self) -> NGramsDecontConfig:
        return NGramsDecontConfig(n_grams=self.n_grams)


class _Index(PipelineStep):
    """Writes the files that ``NGramsDecontFilter`` reads.

    datatrove's own indexer reads lighteval's tasks only; the hashes are the same.
    """

    type = "decontamination"
    name = "index"

    def __init__(self, folder: Path, sets: dict[str, EvaluationSet], config: NGramsDecontConfig) -> None:
        super().__init__()
        self.folder, self.sets, self.config = folder, sets, config

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        hash_of, words = create_hash_func(self.config.hash_config), Words()
        for name, wanted in self.sets.items():
            found = set[int]()
            for text in _texts(wanted):
                tokens = words.word_tokenize(simplify_text(text, self.config.norm_config))
                runs = [hash_of(" ".join(run)) for run in ngrams(tokens, self.config.n_grams)]
                found.update(runs)
                self.stat_update("texts" if runs else "too_short")
            hashes = np.array(sorted(found), dtype=self.config.hash_config.np_descr)
            with get_datafolder(str(self.folder)).open(f"{name}.index.hashes", "wb") as file:
                file.write(hashes.tobytes())
        yield from ()


def _texts(wanted: EvaluationSet) -> Iterator[str]:
    bad = BadRecords("stop", hint="")
    for source in find_sources(wanted.files):
        for record in source.records(bad):
            for field in wanted.fields:
                value = record.fields.get(field)
                if not isinstance(value, str):
                    bad.add(record.source, record.location, f"field {field!r} must be a text; it is {value!r}")
                else:
                    yield value
