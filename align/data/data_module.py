"""What all data modules share: files to a cached corpus, splits, loaders, and a summary of the data."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from align.data.collate import BatchDataset
from align.data.corpus import Corpus, CorpusWriter, corpus_key
from align.data.joined_corpus import CorpusPart, JoinedCorpus
from align.data.mixing import (
    EpochEnd,
    Files,
    MixedLoader,
    MixedOrder,
    Mixture,
    WeightedSource,
    files_of,
    weighted_sources,
)
from align.data.readers import BadRecords, OnBadRecord, Source, find_sources
from align.data.sampler import BatchLoader, BatchOrder, Order, ResumableLoader
from align.io.progress import Advance, progress_bar
from align.tokenizer import Tokenizer
from align.tokenizer.given_template import with_chat_template

_SPLITS = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("validation", "test"),
}


class TokenData(pl.LightningDataModule):
    """Files or Hub data sets to batches of tokens.

    Args:
        tokenizer: Model directory or tokenizer directory
        train: File, glob, Hub id (owner/name:split) or a list of them: .jsonl .json .csv .parquet .txt; or a list of
            sources with weights, {files: ..., weight: 0.7, name: ...}, which are shares of the rows (pairs, prompts)
        validation: The same for validation; None: see val_fraction
        test: The same for `align test`
        val_fraction: Share of the train records, from the end, that is held out for validation instead of files; of
            TextData's only document the last share of its bytes. None: nothing is held out
        epoch: With weights, an epoch ends when every source has been read (longest: the others repeat), or before one
            repeats (shortest: the others are not read to their end)
        context: Tokens the network reads at once; a row has one more
        batch_size: Rows of a batch on each rank
        seed: Seed of the order of training
        workers: Processes that prepare batches; 0: none, as batches are cheap
        cache_dir: Directory of tokenized files, named by content
        on_bad_record: Stop at the first record that can't be used, or skip and count such records
        chat_template: File (chat_template.jinja) or Jinja source that replaces the tokenizer's chat template, here and
            in the model that is trained; plain: the contents alone, eos after each response, for a tokenizer without
            one. None: the tokenizer's own
    """

    _masked: ClassVar[bool] = False
    """Whether a mask says which tokens are targets"""
    _with_prompts: ClassVar[bool] = False
    """Whether a text of each record is stored beside its tokens"""
    _with_labels: ClassVar[bool] = False
    """Whether a label of each record is stored"""
    _renders_chats: ClassVar[bool] = True
    """Whether records are rendered with the chat template"""
    _documents_per_record: ClassVar[int] = 1
    """Documents of the corpus per record"""

    def __init__(
        self,
        tokenizer: str,
        train: Files,
        *,
        validation: str | list[str] | None = None,
        test: str | list[str] | None = None,
        val_fraction: float | None = None,
        epoch: EpochEnd = "longest",
        context: int = 256,
        batch_size: int = 8,
        seed: int = 0,
        workers: int = 0,
        cache_dir: str = "runs/.cache",
        on_bad_record: OnBadRecord = "stop",
        chat_template: str | None = None,
    ) -> None:
        """Check the settings and load the tokenizer.

        Raises:
            ValueError: a setting is invalid.
        """
        super().__init__()
        least_values = {
            "context": (context, 2),
            "batch_size": (batch_size, 1),
            "seed": (seed, 0),
            "workers": (workers, 0),
        }
        for name, (value, least) in least_values.items():
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not train:
            raise ValueError(f"train is {train!r}; name at least one file or Hub data set")
        val_fraction = val_fraction or 0.0
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction is {val_fraction}; it must be at least 0 and less than 1")
        if validation and val_fraction:
            raise ValueError(
                f"validation ({validation}) and val_fraction ({val_fraction}) are both set; add "
                "--data.init_args.val_fraction null to validate on those files, or --data.init_args.validation null "
                "to hold out training records"
            )
        self.tokenizer = with_chat_template(Tokenizer.load(tokenizer), chat_template)
        if self._renders_chats and self.tokenizer.spec.chat_template is None:
            raise ValueError(
                f"the tokenizer {tokenizer} has no chat template; set data.init_args.chat_template to plain (prompts "
                "and responses as they are, then eos) or to a .jinja file, or start from a model that has one"
            )
        self.fingerprints: dict[str, str] = {}
        """File -> hash of its content, for all splits that were set up"""
        self.context, self.batch_size, self.seed, self.workers = context, batch_size, seed, workers
        self.val_fraction, self.on_bad_record, self.cache_dir = val_fraction, on_bad_record, Path(cache_dir)
        self.epoch = epoch
        self._commits: dict[str, str] = {}
        """Hub data set -> the commit that is read"""
        self._given: dict[str, str | Sequence[str | WeightedSource] | None] = {
            "train": train,
            "validation": validation,
            "test": test,
        }
        self._weighted = weighted_sources(train)
        if epoch != "longest" and not self._weighted:
            raise ValueError(f"epoch is {epoch}, but train has no sources with weights; remove it")
        self._mixture = Mixture.of(self._weighted) if self._weighted else None
        self._streamed: tuple[str, ...] = ()
        """Splits that are neither tokenized ahead nor cached"""
        self._corpora: dict[tuple[str, int], Corpus] = {}
        self._joined: dict[str, JoinedCorpus] = {}
        self._datasets: dict[str, Any] = {}
        self._columns: dict[str, tuple[str, ...]] = dict.fromkeys(self._given, ())
        """Split -> columns of its records that rewards and judges read, sorted"""
        self._mixed_loader: MixedLoader[Any] | None = None

    # What subclasses define.

    def _settings(self) -> dict[str, Any]:
        """The settings that decide the tokens of a corpus."""
        raise NotImplementedError

    def _tokenize(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        """Write the corpus of ``sources``, with ``_columns[split]`` where prompts are stored; lines for the report."""
        raise NotImplementedError

    def _dataset(self, split: str) -> BatchDataset[Any]:
        """The dataset of a split."""
        raise NotImplementedError

    def _counts(self, split: str) -> dict[str, Any]:
        """Counts of a split that was set up, by name."""
        raise NotImplementedError

    # Lightning's hooks.

    def prepare_data(self) -> None:
        """Tokenize what is not in the cache; Lightning calls this in one process per machine."""
        self.ask_for_columns(getattr(self.trainer, "lightning_module", None))
        for split, given in self._given.items():
            if given and split not in self._streamed:
                self._corpus(split)
            elif given:
                self._find(files_of(given))

    def setup(self, stage: str) -> None:
        """Open the corpora of a stage and lay out their rows.

        Raises:
            ValueError: a file or record can't be used, or a split has too few rows.
        """
        self.ask_for_columns(getattr(self.trainer, "lightning_module", None))
        self._agree_on_commits(stage)
        for split in _SPLITS[stage]:
            if split in self._datasets or split in self._streamed or not self._has(split):
                continue
            dataset = self._dataset(split)
            least = self._data_parallel()["num_replicas"] if split == "train" else 1
            if len(dataset) < least:
                raise ValueError(
                    f"{split}: the data fill {len(dataset)} row(s), but each rank needs at least one, {least} in all"
                )
            if split == "train" and self._mixture is not None and 0 in (sizes := _rows_of_parts(dataset)):
                raise ValueError(
                    f"train: {self._mixture.names[sizes.index(0)]} does not fill a row; remove this source"
                )
            self._datasets[split] = dataset
            for line in self._summary(split):
                rank_zero_info(line)

    def train_dataloader(self) -> BatchLoader[Any]:
        """Shuffled, resumable batches; with the Trainer's overfit_batches always the first ones, in order."""
        dataset = self._train_dataset()
        order = self._train_order(dataset)
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            fixed = order if isinstance(order, MixedOrder) else self._order(dataset)
            return BatchLoader(dataset, fixed, workers=self.workers)
        identity = self._identity() | dataset.identity
        if isinstance(order, MixedOrder):
            self._mixed_loader = MixedLoader(dataset, order, workers=self.workers, identity=identity)
            return self._mixed_loader
        return ResumableLoader(dataset, order, workers=self.workers, identity=identity)

    def val_dataloader(self) -> BatchLoader[Any] | list[Any]:
        """Every row once, in order; empty without validation data."""
        return self._fixed_loader("validation") if self._has("validation") else []

    def test_dataloader(self) -> BatchLoader[Any]:
        """Every row once, in order.

        Raises:
            ValueError: ``test`` is not set.
        """
        if not self._has("test"):
            raise ValueError("data.test is not set; set it to the files to test on")
        return self._fixed_loader("test")

    def predict_dataloader(self) -> BatchLoader[Any]:
        """Every row of the test files once, in order; without test files, of the validation data.

        Raises:
            ValueError: there is neither.
        """
        if not self._has("test") and not self._has("validation"):
            raise ValueError("neither data.test nor data.validation is set; set one to the files to predict on")
        return self._fixed_loader("test" if self._has("test") else "validation")

    def teardown(self, stage: str) -> None:
        """Report what training read of each source of a mixture."""
        if self._mixed_loader is not None:
            for line in self._mixed_loader.tally.lines():
                rank_zero_info(f"train: {line}")
        self._mixed_loader = None

    def describe(self) -> dict[str, dict[str, float]]:
        """For each split that was set up: counts of records and tokens, the share of padding, what was truncated."""
        return {split: self._numbers(split) for split in self._datasets}

    # From files to rows.

    def _find(self, files: str | list[str]) -> list[Source]:
        """The sources; Hub data sets at the commit that this run reads, the newest when it was first looked up."""
        found = []
        for source in find_sources(files):
            pinned = replace(source, commit=self._commits.get(source.name)).pinned()
            if pinned.commit is not None:
                self._commits[source.name] = pinned.commit
            found.append(pinned)
        return found

    def _agree_on_commits(self, stage: str) -> None:
        """Read on all ranks the commits that rank 0 prepared; one may have been published meanwhile."""
        splits = (*_SPLITS[stage], *(["train"] if self.val_fraction else []))
        files = [file for split in splits for file in files_of(self._given[split] or ())]
        if self.trainer is not None and any(source.kind == "hub" for source in find_sources(files)):
            self._commits = self.trainer.strategy.broadcast(self._commits)

    def _has(self, split: str) -> bool:
        return bool(self._given[split]) or (split == "validation" and self.val_fraction > 0)

    def _corpus(self, split: str) -> Corpus:
        """The corpus of a split, written first if the cache does not have it; of a mixture the split's part of each."""
        given = "train" if split == "validation" and self.val_fraction else split
        if not (self._weighted and given == "train"):
            files = self._given[given]
            assert files
            return self._tokenized(given, 0, files_of(files))
        if split not in self._joined:
            corpora = [self._tokenized(given, number, one.files) for number, one in enumerate(self._weighted)]
            self._joined[split] = JoinedCorpus.of(
                [
                    CorpusPart(corpus, self._bounds_of(corpus, split), self._records_of(corpus, split))
                    for corpus in corpora
                ]
            )
        return self._joined[split]

    def _tokenized(self, split: str, number: int, files: str | list[str]) -> Corpus:
        """The corpus of the files of a split, or of a weighted source of it."""
        if (split, number) in self._corpora:
            return self._corpora[split, number]
        sources = self._find(files)
        prints = {source.name: source.fingerprint() for source in sources}
        self.fingerprints |= prints
        decides = {
            "kind": type(self).__name__,
            "files": [[source.kind, prints[source.name]] for source in sources],
            "tokenizer": self.tokenizer.fingerprint,
            "on_bad_record": self.on_bad_record,
            **self._settings(),
        }
        columns = self._columns[split]
        # A run may resume with a judge that reads further columns, unless records without them are left out.
        identity = corpus_key(columns=columns if self.on_bad_record == "skip" else (), **decides)
        path = self.cache_dir / f"{type(self).__name__}-{corpus_key(columns=columns, **decides)}"
        if not (path / "meta.json").exists():
            self._write(path, sources, split, identity=f"{type(self).__name__}-{identity}")
        self._corpora[split, number] = Corpus.open(path)
        return self._corpora[split, number]

    def ask_for_columns(self, stage: Any) -> None:
        """Ask a stage, if any, for the columns that its rewards read; forget corpora that were opened for other ones.

        Raises:
            ValueError: there is no such reward.
        """
        read = getattr(stage, "reward_columns", None)
        if read is None or not self._with_prompts:
            return
        columns = {split: set(read(split)) for split in self._given}
        if self.val_fraction:
            columns["train"] |= columns["validation"]
        asked = {split: tuple(sorted(names)) for split, names in columns.items()}
        if asked != self._columns:
            self._columns = asked
            self._corpora.clear()
            self._joined.clear()
            self._datasets.clear()

    def _write(self, path: Path, sources: Sequence[Source], split: str, *, identity: str) -> None:
        bad = BadRecords(self.on_bad_record)
        with CorpusWriter(
            path,
            vocab_size=self.tokenizer.vocab_size,
            masked=self._masked,
            with_prompts=self._with_prompts,
            with_labels=self._with_labels,
        ) as writer:
            try:
                report = self._tokenize(sources, writer, bad, split)
            except MemoryError as error:
                raise ValueError(
                    f"{bad.place or sources[0].name}: not enough memory to tokenize this record or the next; split "
                    "long ones"
                ) from error
            if not writer.documents:
                reason = "; ".join(bad.report()) or "there are no records"
                raise ValueError(f"{', '.join(source.name for source in sources)}: no usable record: {reason}")
            records = {"used": bad.used, "bad": bad.count, "unread_columns": bad.unread}
            writer.meta |= {"report": bad.report() + report, "records": records, "identity": identity}

    def _records(self, split: str) -> range:
        """The records of a split in its corpus."""
        corpus = self._corpus(split)
        if isinstance(corpus, JoinedCorpus):
            return range((len(corpus.offsets) - 1) // self._documents_per_record)
        return self._records_of(corpus, split)

    def _records_of(self, corpus: Corpus, split: str) -> range:
        """The records of a split in the corpus of its files, or in that of one of its sources."""
        count = (len(corpus.offsets) - 1) // self._documents_per_record
        if not self.val_fraction or split == "test":
            return range(count)
        if count < 2:
            raise ValueError(
                f"val_fraction is {self.val_fraction}, but train has only {count} record, which can't be held out and "
                "trained on; add records, set val_fraction to 0, or name files in validation"
            )
        held_out = min(count - 1, max(1, round(count * self.val_fraction)))
        return range(count - held_out) if split == "train" else range(count - held_out, count)

    def _bounds_of(self, corpus: Corpus, split: str) -> np.ndarray:
        """``[documents + 1]`` offsets of the documents of ``_records_of``."""
        records = self._records_of(corpus, split)
        number = self._documents_per_record
        return np.asarray(corpus.offsets)[records.start * number : records.stop * number + 1]

    def _pad_id(self) -> int:
        pad_id = self.tokenizer.pad_id
        return pad_id if pad_id is not None else self._eos_id()

    def _eos_id(self) -> int:
        if self.tokenizer.eos_id is None:
            raise ValueError("the tokenizer has no eos token; set eos_token in tokenizer_config.json")
        return self.tokenizer.eos_id

    # From rows to batches.

    def _data_parallel(self) -> dict[str, int]:
        """Number of ranks that share the data, and the index of this one; a tensor-parallel group is one rank."""
        sharing = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return sharing or {"num_replicas": 1, "rank": 0}

    def _train_dataset(self) -> BatchDataset[Any]:
        """The dataset of the train loader."""
        dataset: BatchDataset[Any] = self._datasets["train"]
        return dataset

    def _order(self, dataset: BatchDataset[Any], *, seed: int | None = None) -> BatchOrder:
        sharing = self._data_parallel()
        return BatchOrder(
            rows=len(dataset),
            batch_size=self.batch_size,
            seed=seed,
            ranks=sharing["num_replicas"],
            rank=sharing["rank"],
            widths=dataset.sort_widths,
        )

    def _train_order(self, dataset: BatchDataset[Any]) -> BatchOrder | MixedOrder:
        if self._mixture is None:
            return self._order(dataset, seed=self.seed)
        sharing = self._data_parallel()
        return MixedOrder(
            self._mixture,
            _rows_of_parts(dataset),
            batch_size=self.batch_size,
            seed=self.seed,
            ends=self.epoch,
            ranks=sharing["num_replicas"],
            rank=sharing["rank"],
            widths=dataset.sort_widths,
        )

    def _fixed_loader(self, split: str) -> BatchLoader[Any]:
        dataset = self._datasets[split]
        return BatchLoader(dataset, self._order(dataset), workers=self.workers)

    def _identity(self) -> dict[str, Any]:
        """What gives a position in the data its meaning, besides the order: the tokens and the rows."""
        dataset = self._datasets["train"]
        return {"data": dataset.corpus.identity, "context": self.context}

    # Summary.

    def _numbers(self, split: str) -> dict[str, float]:
        dataset = self._train_dataset() if split == "train" else self._datasets[split]
        order: Order = self._train_order(dataset) if split == "train" else self._order(dataset)
        table = order.sample()
        truncation = dataset.corpus.meta.get("truncation", {}) if self._given[split] else {}
        return self._counts(split) | {"padding_share": dataset.padding_share(table)} | truncation

    def _summary(self, split: str) -> Iterable[str]:
        yield f"{split}: " + ", ".join(
            f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name.replace('_', ' ')} {value:.1%}"
            for name, value in self._numbers(split).items()
            if value or name == "padding_share"
        )
        corpus = self._datasets[split].corpus
        if split == "train" and self._mixture is not None:
            yield from self._mixture_summary(self._mixture)
        elif self._given[split]:  # the report of train covers what was held out of it
            yield from (f"{split}: {line}" for line in corpus.meta["report"])

    def _mixture_summary(self, mixture: Mixture) -> Iterable[str]:
        dataset = self._train_dataset()
        order = self._train_order(dataset)
        corpus = dataset.corpus
        assert isinstance(order, MixedOrder)
        assert isinstance(corpus, JoinedCorpus)
        yield f"train: mixture of rows, an epoch of {len(order):,} steps ends with the {self.epoch} source"
        parts = zip(mixture.names, mixture.weights, order.sizes, order.passes().tolist(), corpus.parts, strict=True)
        for name, weight, rows, passes, part in parts:
            yield f"train: {name}: weight {weight:.1%}, {rows:,} rows, read {passes:.2f} times in an epoch"
            yield from (f"train: {name}: {line}" for line in part.corpus.meta["report"])


def _rows_of_parts(dataset: BatchDataset[Any]) -> tuple[int, ...]:
    """Rows of each part of a joined corpus."""
    corpus = dataset.corpus
    assert isinstance(corpus, JoinedCorpus)
    return tuple(np.bincount(corpus.part_of(dataset.starts), minlength=len(corpus.parts)).tolist())


def tokenization_bar(sources: Sequence[Source], split: str) -> AbstractContextManager[Advance]:
    """A progress bar over the bytes of the sources; of unknown length where a source's is unknown."""
    sizes = [source.size for source in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    return progress_bar(f"tokenizing {split}", total, in_bytes=True)
