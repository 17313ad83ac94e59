"""What all data modules share: files to a cached corpus, splits, loaders, and a summary of the data."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from align.data.collate import BatchDataset
from align.data.corpus import Corpus, CorpusWriter, corpus_key
from align.data.readers import BadRecords, OnBadRecord, Source, find_sources
from align.data.sampler import BatchLoader, BatchOrder, ResumableLoader
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
        train: File, glob, Hub id (owner/name:split) or a list of them: .jsonl .json .csv .parquet .txt
        validation: The same for validation; None: see val_fraction
        test: The same for `align test`
        val_fraction: Share of the train records, from the end, that is held out for validation instead of files; of a
            single document the last share of its text. None: nothing is held out
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
    _renders_chats: ClassVar[bool] = True
    """Whether records are rendered with the chat template"""
    _documents_per_record: ClassVar[int] = 1
    """Documents of the corpus per record"""

    def __init__(
        self,
        tokenizer: str,
        train: str | list[str],
        *,
        validation: str | list[str] | None = None,
        test: str | list[str] | None = None,
        val_fraction: float | None = None,
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
        self._given = {"train": train, "validation": validation, "test": test}
        self._corpora: dict[str, Corpus] = {}
        self._datasets: dict[str, Any] = {}

    # What subclasses define.

    def _settings(self) -> dict[str, Any]:
        """The settings that decide the tokens of a corpus."""
        raise NotImplementedError

    def _tokenize(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        """Write the corpus of ``sources`` and return lines for the report."""
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
        for split, given in self._given.items():
            if given:
                self._corpus(split)

    def setup(self, stage: str) -> None:
        """Open the corpora of a stage and lay out their rows.

        Raises:
            ValueError: a file or record can't be used, or a split has too few rows.
        """
        for split in _SPLITS[stage]:
            if split in self._datasets or not self._has(split):
                continue
            dataset = self._dataset(split)
            least = self._data_parallel()["num_replicas"] if split == "train" else 1
            if len(dataset) < least:
                raise ValueError(
                    f"{split}: the data fill {len(dataset)} row(s), but each rank needs at least one, {least} in all"
                )
            self._datasets[split] = dataset
            for line in self._summary(split):
                rank_zero_info(line)

    def train_dataloader(self) -> BatchLoader[Any]:
        """Shuffled, resumable batches; with the Trainer's overfit_batches always the first ones, in order."""
        dataset = self._train_dataset()
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return BatchLoader(dataset, self._order(dataset), workers=self.workers)
        order = self._order(dataset, seed=self.seed)
        return ResumableLoader(dataset, order, workers=self.workers, identity=self._identity() | dataset.identity)

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

    def describe(self) -> dict[str, dict[str, float]]:
        """For each split that was set up: counts of records and tokens, the share of padding, what was truncated."""
        return {split: self._numbers(split) for split in self._datasets}

    # From files to rows.

    def _has(self, split: str) -> bool:
        return bool(self._given[split]) or (split == "validation" and self.val_fraction > 0)

    def _corpus(self, split: str) -> Corpus:
        """The corpus of a split, written first if the cache does not have it."""
        if split == "validation" and self.val_fraction:
            split = "train"
        if split in self._corpora:
            return self._corpora[split]
        given = self._given[split]
        assert given
        sources = find_sources(given)
        prints = {source.name: source.fingerprint() for source in sources}
        self.fingerprints |= prints
        key = corpus_key(
            kind=type(self).__name__,
            files=[[source.kind, prints[source.name]] for source in sources],
            tokenizer=self.tokenizer.fingerprint,
            on_bad_record=self.on_bad_record,
            **self._settings(),
        )
        path = self.cache_dir / f"{type(self).__name__}-{key}"
        if not (path / "meta.json").exists():
            self._write(path, sources, split)
        self._corpora[split] = Corpus.open(path)
        return self._corpora[split]

    def _write(self, path: Path, sources: Sequence[Source], split: str) -> None:
        bad = BadRecords(self.on_bad_record)
        with CorpusWriter(
            path, vocab_size=self.tokenizer.vocab_size, masked=self._masked, with_prompts=self._with_prompts
        ) as writer:
            report = self._tokenize(sources, writer, bad, split)
            report = bad.report() + report
            if not writer.documents:
                raise ValueError(
                    f"{', '.join(source.name for source in sources)}: no usable record; {' '.join(report)}"
                )
            writer.meta["report"] = report

    def _records(self, split: str) -> range:
        """The records of a split in its corpus."""
        count = (len(self._corpus(split).offsets) - 1) // self._documents_per_record
        if not self.val_fraction or split == "test":
            return range(count)
        held_out = min(count - 1, max(1, round(count * self.val_fraction)))
        return range(count - held_out) if split == "train" else range(count - held_out, count)

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

    def _fixed_loader(self, split: str) -> BatchLoader[Any]:
        dataset = self._datasets[split]
        return BatchLoader(dataset, self._order(dataset), workers=self.workers)

    def _identity(self) -> dict[str, Any]:
        """What gives a position in the data its meaning, besides the order: the tokens and the rows."""
        dataset = self._datasets["train"]
        return {"data": dataset.corpus.path.name, "context": self.context}

    # Summary.

    def _numbers(self, split: str) -> dict[str, float]:
        dataset = self._train_dataset() if split == "train" else self._datasets[split]
        table = self._order(dataset, seed=self.seed if split == "train" else None).batches(0)
        truncation = dataset.corpus.meta.get("truncation", {}) if self._given[split] else {}
        return self._counts(split) | {"padding_share": dataset.padding_share(table)} | truncation

    def _summary(self, split: str) -> Iterable[str]:
        yield f"{split}: " + ", ".join(
            f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name.replace('_', ' ')} {value:.1%}"
            for name, value in self._numbers(split).items()
            if value or name == "padding_share"
        )
        if self._given[split]:  # the report of train covers what was held out of it
            yield from (f"{split}: {line}" for line in self._datasets[split].corpus.meta["report"])


def tokenization_bar(sources: Sequence[Source], split: str) -> AbstractContextManager[Advance]:
    """A progress bar over the bytes of the sources; of unknown length where a source's is unknown."""
    sizes = [source.size for source in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    return progress_bar(f"tokenizing {split}", total, in_bytes=True)
