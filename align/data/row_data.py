"""What text and chats share: documents laid out in rows, from the cache or streamed."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info

from align.data.collate import RowDataset
from align.data.corpus import Corpus, corpus_key
from align.data.data_module import TokenData
from align.data.joined_corpus import JoinedCorpus
from align.data.mixing import Files, Mixture, WeightedSource
from align.data.readers import Source
from align.data.rows import Packing, Rows
from align.data.streaming import BlockStream, Encoder, StreamLoader, files_of_rank, quick_fingerprint


class RowData(TokenData):
    """Files or Hub data sets to ``TokenBatch``: each record is a document, and documents are laid out in rows.

    Args:
        streaming: Tokenize and pack the train records while training instead of ahead, without a cache: for data that
            do not fit on the disk, and Hub data sets that are not downloaded. Needs trainer.max_steps; validation and
            test are cached as ever
        shuffle_buffer: Rows that are packed and shuffled together while streaming; each is held in memory
        files_by_rank: While streaming, each rank reads and tokenizes files of its own instead of all; needs files that
            can be shared out evenly, and a run then resumes on as many ranks only
    """

    packing: str
    """Name of the packing"""
    _packing: Packing

    def __init__(
        self,
        tokenizer: str,
        train: Files,
        *,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
        files_by_rank: bool = False,
        **kwargs: Any,
    ) -> None:
        """Check the settings; ``TokenData`` has those that all data modules share.

        Raises:
            ValueError: a setting is invalid.
        """
        super().__init__(tokenizer, train, **kwargs)
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer is {shuffle_buffer}; it must be at least 1 row")
        if streaming and self.val_fraction:
            raise ValueError(
                f"val_fraction is {self.val_fraction}, but the number of records of a stream is unknown; set "
                "validation to files"
            )
        if streaming and self.workers > 1:
            raise ValueError(
                f"workers is {self.workers}, but a stream is tokenized by one process for each source; set it to 1, or "
                "to 0 for the training process"
            )
        if streaming and self.epoch != "longest":
            raise ValueError(f"epoch is {self.epoch}, but a stream has no end; an epoch is trainer.max_steps long")
        if files_by_rank and not streaming:
            raise ValueError("files_by_rank is true, which is for data that are streamed; set streaming to true too")
        self.streaming, self.shuffle_buffer, self.files_by_rank = streaming, shuffle_buffer, files_by_rank
        self._streamed = ("train",) if streaming else ()
        self._stream_sources: list[list[Source]] = []
        """Files or Hub data sets of each source of the mixture, as ``setup`` found them"""
        self._stream_loader: StreamLoader | None = None

    def _pack(self, name: str, known: Mapping[str, Packing]) -> None:
        """Choose the packing.

        Raises:
            ValueError: there is none of this name.
        """
        if name not in known:
            raise ValueError(f"packing is {name!r}; it must be one of {', '.join(known)}")
        self.packing, self._packing = name, known[name]

    def _encoder(self) -> Encoder:
        """What tokenizes the records of a stream."""
        raise NotImplementedError

    def _dataset(self, split: str) -> RowDataset:
        # No row has tokens of two sources.
        rows = Rows.concatenated([self._packing.lay_out(part) for part in self._parts(split)])
        return self._row_dataset(self._corpus(split), rows)

    def _row_dataset(self, corpus: Corpus, rows: Rows) -> RowDataset:
        return RowDataset(
            corpus=corpus,
            rows=rows,
            token_bytes=self.tokenizer.token_bytes,
            pad_id=self._pad_id(),
            width=self.context + 1,
            fixed_width=self._packing.fixed_width,
            block_diagonal=self._packing.block_diagonal,
        )

    def _bounds(self, split: str) -> np.ndarray:
        """``[documents + 1]`` offsets of a split's documents in its corpus."""
        corpus = self._corpus(split)
        return corpus.offsets if isinstance(corpus, JoinedCorpus) else self._bounds_of(corpus, split)

    def _parts(self, split: str) -> list[np.ndarray]:
        """``_bounds`` of each source."""
        corpus, bounds = self._corpus(split), self._bounds(split)
        if not isinstance(corpus, JoinedCorpus):
            return [bounds]
        documents = corpus.documents
        return [bounds[first : last + 1] for first, last in zip(documents, documents[1:], strict=False)]

    def _counts(self, split: str) -> dict[str, Any]:
        dataset, bounds = self._datasets[split], self._bounds(split)
        return {
            "documents": len(bounds) - 1,
            "tokens": int(bounds[-1] - bounds[0]),
            "target_tokens": _targets_per_pass(dataset),
            "rows": len(dataset),
        }

    # Streaming.

    def setup(self, stage: str) -> None:
        """Open the corpora of a stage and lay out their rows; name the files of a stream.

        Raises:
            ValueError: a file or record can't be used, or a split has too few rows.
        """
        super().setup(stage)
        if self.streaming and stage == "fit":
            self._stream_sources = [self._find(one.files) for one in self._weighted_or_whole()]
            self.fingerprints |= {
                source.name: quick_fingerprint(source) for sources in self._stream_sources for source in sources
            }

    def train_dataloader(self) -> Any:
        """Shuffled, resumable batches, from the cache or streamed; with overfit_batches always the first ones.

        Raises:
            ValueError: the data are streamed, and the Trainer has no ``max_steps``, or has ``overfit_batches``, or the
                ranks can't have files of their own.
        """
        if not self.streaming:
            return super().train_dataloader()
        sharing = self._data_parallel()
        ranks, rank = sharing["num_replicas"], sharing["rank"]
        alone = self.files_by_rank and ranks > 1
        streams = [
            BlockStream(
                files_of_rank(sources, ranks=ranks, rank=rank) if alone else sources,
                self._encoder(),
                packing=self._packing,
                width=self.context + 1,
                rows=self.shuffle_buffer,
                seed=(self.seed, number),
                on_bad_record=self.on_bad_record,
            )
            for number, sources in enumerate(self._stream_sources)
        ]
        self._stream_loader = StreamLoader(
            streams,
            Mixture.of(self._weighted_or_whole()),
            self._row_dataset,
            steps=self._stream_steps(),
            batch_size=self.batch_size,
            seed=self.seed,
            ranks=ranks,
            rank=rank,
            workers=self.workers,
            identity=self._stream_identity(),
            gather=self._of_all_ranks if alone else None,
        )
        return self._stream_loader

    def teardown(self, stage: str) -> None:
        """Report what training read of each source of a mixture or stream."""
        super().teardown(stage)
        if self._stream_loader is not None:
            for line in self._stream_loader.report():
                rank_zero_info(f"train: {line}")
            self._stream_loader.close()
        self._stream_loader = None

    def _weighted_or_whole(self) -> list[WeightedSource]:
        files: Any = self._given["train"]
        return self._weighted or [WeightedSource(files)]

    def _stream_steps(self) -> int:
        """Batches of an epoch: all that the run needs."""
        if self.trainer is None:
            return sys.maxsize
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise ValueError("trainer.overfit_batches needs the same rows again; set data.streaming to false")
        if self.trainer.max_steps < 1:
            raise ValueError(
                f"data.streaming is true, and a stream has no end, but trainer.max_steps is {self.trainer.max_steps}; "
                "set it to the number of optimizer steps"
            )
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _of_all_ranks(self, own: Any) -> list[Any]:
        """A value of each data-parallel rank; all ranks call it at once."""
        sharing = self._data_parallel()
        found = [(sharing["rank"], own)] * dist.get_world_size()
        dist.all_gather_object(found, (sharing["rank"], own))
        # Ranks of a tensor-parallel group have the same value.
        by_rank = dict(found)
        return [by_rank[rank] for rank in range(sharing["num_replicas"])]

    def _stream_identity(self) -> dict[str, Any]:
        """What gives a position in the stream its meaning, besides weights, seed and batch size."""
        files = [[self.fingerprints[source.name] for source in sources] for sources in self._stream_sources]
        return {
            "data": corpus_key(
                kind=type(self).__name__,
                files=files,
                tokenizer=self.tokenizer.fingerprint,
                on_bad_record=self.on_bad_record,
                **self._settings(),
            ),
            "context": self.context,
            "shuffle_buffer": self.shuffle_buffer,
            "packing": self.packing,
            "block_diagonal": self._packing.block_diagonal,
        }


def _targets_per_pass(dataset: RowDataset) -> int:
    """Number of targets in one pass."""
    if dataset.corpus.target_mask is None:
        return int((dataset.rows.lengths - 1).sum())
    ends = np.cumsum(dataset.corpus.target_mask)
    first, last = dataset.rows.starts, dataset.rows.starts + dataset.rows.lengths - 1
    return int((ends[last] - ends[first]).sum())
