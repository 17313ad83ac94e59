"""Rows straight from files and Hub data sets, tokenized and packed while training: no cache, bounded memory.

A source is read in blocks. A block is the records that fill ``shuffle_buffer`` rows; it is packed, its rows are
shuffled, and then the next block is read. Everything about a block follows from the position at which it begins, so a
position and a row number are all that a checkpoint needs: a resumed run reads up to the block without tokenizing, and
tokenizes that block again.

Every rank reads all blocks and takes a strided slice of each step's rows, as from a cached corpus. So no row occurs
twice, the order does not depend on the number of ranks, and the position of one rank serves all. Or each rank reads
files of its own: then ranks share the tokenization too, and a checkpoint has the position of each.

Legend: B rows of a step on all ranks, W tokens of the longest row allowed, R rows of a block, S spans.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Generator
from torch.utils.data import DataLoader, IterableDataset

from align.batches import TokenBatch
from align.data.collate import RowDataset
from align.data.corpus import Corpus
from align.data.mixing import Mixture, SourceTally
from align.data.readers import BadRecords, OnBadRecord, Record, Source
from align.data.rows import Packing, Rows, ranges
from align.data.sampler import PRODUCT, SORTED_BATCHES, refuse_other_data

Gather = Callable[[Any], list[Any]]
"""Called by all data-parallel ranks at once, each with a value of its own; returns those of all, by rank"""

_APART = 1.1
"""Largest ratio between the bytes that two ranks read: a rank with fewer repeats its rows more often"""
_EDGE = 1 << 20
"""Bytes at either end of a file that its fingerprint covers"""


class Position(NamedTuple):
    """Where in a source a block begins.

    Attributes:
        epoch: passes over the source before it.
        file: files of this epoch before it.
        record: records of this file before it.
        token: tokens of this record before it, other than 0 only within a document longer than a row.
    """

    epoch: int = 0
    file: int = 0
    record: int = 0
    token: int = 0


class Document(NamedTuple):
    """A tokenized record.

    Attributes:
        record: index of the record in its file.
        ids: ``[n]`` token ids.
        mask: ``[n]`` bool, True on targets; None: all tokens are.
    """

    record: int
    ids: np.ndarray
    mask: np.ndarray | None


class StreamedRow(NamedTuple):
    """A row.

    Attributes:
        ids: ``[w]`` token ids of its spans.
        mask: ``[w]`` bool; None: all tokens are targets.
        lengths: ``[spans]`` int64, tokens of each span.
    """

    ids: np.ndarray
    mask: np.ndarray | None
    lengths: np.ndarray


class Block(NamedTuple):
    """Rows that were packed and shuffled together.

    Attributes:
        start: where it begins.
        stop: where the next one begins.
        rows: R rows.
        report: what became of the records so far that a user should know.
    """

    start: Position
    stop: Position
    rows: list[StreamedRow]
    report: list[str]


@dataclass(frozen=True)
class CountedSource(Source):
    """A source that counts the records read of it."""

    skipped: int = 0
    """Records at its start that are known already"""
    _read: list[int] = field(default_factory=lambda: [0])

    @property
    def read(self) -> int:
        """Records read so far, the current one included."""
        return self._read[0]

    @property
    def skipping(self) -> bool:
        """Whether the current record is known already."""
        return self.read <= self.skipped

    def records(self, bad: BadRecords, **options: Any) -> Iterator[Record]:
        """The records of the source."""
        for number, record in enumerate(super().records(bad, **options), 1):
            self._read[0] = number
            yield record


class Encoder(Protocol):
    """Turns the records of a source into documents."""

    def documents(self, source: CountedSource, bad: BadRecords) -> Iterator[Document]:
        """The documents of the records that are not known already and can be used."""
        ...

    def report(self) -> list[str]:
        """What became of all records so far."""
        ...


class BlockStream:
    """The endless sequence of a source's blocks."""

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: Encoder,
        *,
        packing: Packing,
        width: int,
        rows: int,
        seed: Sequence[int],
        on_bad_record: OnBadRecord,
    ) -> None:
        """Describe the blocks.

        Args:
            sources: files, in another order in each epoch.
            encoder: tokenizes the records.
            packing: lays documents out in rows.
            width: W.
            rows: rows that fill a block.
            seed: of the shuffling.
            on_bad_record: what to do about records that can't be used.
        """
        self.sources, self.encoder, self.packing = list(sources), encoder, packing
        self.width, self.rows, self.seed = width, rows, tuple(seed)
        self._bad = BadRecords(on_bad_record)

    def blocks(self, start: Position) -> Iterator[Block]:
        """The blocks from one that begins at ``start``.

        Raises:
            ValueError: a record can't be used, or no record of an epoch can.
        """
        while True:
            held: list[Document] = []
            tokens, found = 0, start[1:] != (0, 0, 0)
            for document, position in self._epoch(start):
                rest: Document | None = document
                while rest is not None:
                    part, rest = self._split(rest, self.rows * self.width - tokens)
                    held.append(part)
                    tokens += len(part.ids)
                    if rest is None:
                        position = position._replace(record=document.record + 1, token=0)
                    else:
                        position = position._replace(token=position.token + len(part.ids) - 1)
                    full = tokens >= self.rows * self.width if self.packing.fixed_width else len(held) >= self.rows
                    if full or rest is not None:
                        yield self._block(start, position, held)
                        start, held, tokens, found = position, [], 0, True
            after = Position(start.epoch + 1)
            last = self._block(start, after, held)
            if not (found or last.rows):
                names = ", ".join(source.name for source in self.sources)
                raise ValueError(f"{names}: no usable record; {' '.join(self._bad.report())}")
            if last.rows:
                yield last
            start = after

    def _epoch(self, start: Position) -> Iterator[tuple[Document, Position]]:
        """The documents from ``start`` to the end of its epoch, and where each begins."""
        order = np.random.default_rng([*self.seed, start.epoch]).permutation(len(self.sources))
        for file, index in enumerate(order.tolist()):
            if file < start.file:
                continue
            record, token = start[2:] if file == start.file else (0, 0)
            source = self.sources[index]
            counted = CountedSource(source.name, source.kind, source.commit, skipped=record)
            for document in self.encoder.documents(counted, self._bad):
                begins = token if document.record == record else 0
                yield _from(document, begins), Position(start.epoch, file, document.record, begins)

    def _split(self, document: Document, room: int) -> tuple[Document, Document | None]:
        """What a block with ``room`` tokens left takes of a document, and the rest; only long documents are split.

        They are split where rows would split them, so the rest begins with the last token of what was taken.
        """
        step = self.width - 1
        taken = max(1, room // step) * step + 1
        if len(document.ids) <= max(room, self.width) or len(document.ids) <= taken:
            return document, None
        first = document._replace(
            ids=document.ids[:taken], mask=None if document.mask is None else document.mask[:taken]
        )
        return first, _from(document, taken - 1)

    def _block(self, start: Position, stop: Position, held: Sequence[Document]) -> Block:
        bounds = np.cumsum([0, *(len(document.ids) for document in held)])
        starts, lengths, offsets = self.packing.lay_out(bounds)
        index = ranges(starts, lengths)  # of the tokens in the order of the rows
        ids = np.concatenate([np.empty(0, np.uint8), *(document.ids for document in held)])[index]
        masks = [document.mask for document in held if document.mask is not None]
        mask = np.concatenate(masks)[index] if masks else None
        ends = np.concatenate([[0], np.cumsum(lengths)])[offsets]
        order = np.random.default_rng([*self.seed, *start]).permutation(len(offsets) - 1)
        rows = [
            StreamedRow(
                ids[ends[row] : ends[row + 1]],
                None if mask is None else mask[ends[row] : ends[row + 1]],
                lengths[offsets[row] : offsets[row + 1]],
            )
            for row in order.tolist()
        ]
        return Block(start, stop, rows, self._bad.report() + self.encoder.report())


def _from(document: Document, token: int) -> Document:
    """A document without its first ``token`` tokens."""
    if not token:
        return document
    return document._replace(ids=document.ids[token:], mask=None if document.mask is None else document.mask[token:])


class _InWorker(IterableDataset[Block | Exception]):
    """The blocks of a stream, read in a worker process."""

    def __init__(self, stream: BlockStream, start: Position) -> None:
        self.stream, self.start = stream, start

    def __iter__(self) -> Iterator[Block | Exception]:
        try:
            yield from self.stream.blocks(self.start)
        except Exception as error:  # torch would wrap its message in a traceback
            yield error


class _Cursor:
    """The next row of a source."""

    def __init__(self, stream: BlockStream, position: Position, row: int, *, in_process: bool) -> None:
        self._position, self._row = position, row
        self._block: Block | None = None
        self._blocks: Iterator[Any] = iter(
            DataLoader(
                _InWorker(stream, position),
                batch_size=None,
                num_workers=1,
                prefetch_factor=1,
                collate_fn=_unchanged,
                generator=Generator(),
            )
            if in_process
            else stream.blocks(position)
        )

    @property
    def position(self) -> list[int]:
        """Where the current block begins, and the rows taken of it."""
        if self._block is not None and self._row == len(self._block.rows):
            return [*self._block.stop, 0]
        return [*self._position, self._row]

    @property
    def report(self) -> list[str]:
        """What became of the records so far."""
        return [] if self._block is None else self._block.report

    def take(self) -> StreamedRow:
        """The next row."""
        while self._block is None or self._row >= len(self._block.rows):
            if self._block is not None:
                self._position, self._row = self._block.stop, 0
            block = next(self._blocks)
            if isinstance(block, Exception):
                raise block
            self._block = block
        row = self._block.rows[self._row]
        self._row += 1
        return row


def _unchanged(block: Any) -> Any:
    return block


def files_of_rank(sources: Sequence[Source], *, ranks: int, rank: int) -> list[Source]:
    """The files that a rank reads alone; all ranks read about as many bytes.

    The largest file goes to the rank with the fewest bytes so far, then the next largest.

    Args:
        sources: files of all ranks.
        ranks: number of data-parallel ranks.
        rank: index of this rank.

    Raises:
        ValueError: one is a Hub data set, or the files can't be shared out evenly.
    """
    advice = "split the data into more files of similar size, or set data.files_by_rank to false"
    shares: list[list[Source]] = [[] for _ in range(ranks)]
    read = [0] * ranks
    for source in sources:
        if source.size is None:
            raise ValueError(f"data.files_by_rank is true, but {source.name} on the Hub is read as a whole: {advice}")
    for source in sorted(sources, key=lambda source: (-(source.size or 0), source.name)):
        least = read.index(min(read))
        shares[least].append(source)
        read[least] += source.size or 0
    if min(read) * _APART < max(read):
        raise ValueError(
            f"data.files_by_rank is true, but {len(sources)} file(s) such as {sources[0].name} give {ranks} ranks "
            f"between {min(read):,} and {max(read):,} bytes: {advice}"
        )
    return [source for source in sources if source in shares[rank]]


class StreamLoader:
    """Batches of streamed rows; resumes at the batch after the last one delivered.

    If rows have different widths, those of up to 64 steps, at most ``shuffle_buffer`` rows, are sorted by length and
    split into batches, and the batches are shuffled.
    """

    def __init__(
        self,
        streams: Sequence[BlockStream],
        mixture: Mixture,
        dataset: Callable[[Corpus, Rows], RowDataset],
        *,
        steps: int,
        batch_size: int,
        seed: int,
        ranks: int,
        rank: int,
        workers: int,
        identity: Mapping[str, Any],
        gather: Gather | None = None,
    ) -> None:
        """Build the loader.

        Args:
            streams: one for each source of the mixture.
            mixture: which source each row comes from.
            dataset: makes a data set of rows that are in memory.
            steps: batches of an epoch.
            batch_size: rows of a batch on one rank.
            seed: of the shuffling.
            ranks: number of data-parallel ranks.
            rank: index of this rank.
            workers: 0: blocks are prepared in the training process; 1: in a process for each source.
            identity: what decides the rows; a checkpoint with another identity is refused.
            gather: if the streams have files of this rank alone; None: those of all ranks.
        """
        self.streams, self.mixture, self.dataset = list(streams), mixture, dataset
        self.steps, self.batch_size, self.seed, self.workers = steps, batch_size, seed, workers
        self.ranks, self.rank, self._gather = ranks, rank, gather
        self._slice = slice(rank, None, ranks) if gather is None else slice(None)
        """This rank's rows of a step"""
        step = batch_size * (ranks if gather is None else 1)
        self.delivered = 0
        self.tally = SourceTally(mixture)
        self._tokens = self._numel = 0
        """Of the batches made in this process: tokens, and those with padding"""
        packing, rows = streams[0].packing, streams[0].rows
        self._group = 1 if packing.fixed_width else max(1, min(SORTED_BATCHES, rows // step))
        self._size = self._group * step
        """Rows of a group"""
        self._positions = [[*Position(), 0] for _ in streams]
        """Where the group of the next step begins in each source"""
        self._cursors: list[_Cursor] = []
        self._batches: Iterator[TokenBatch] | None = None
        alone = 1 if gather is None else ranks
        self._identity = dict(identity) | {
            PRODUCT: batch_size * ranks,
            "ranks with files of their own": alone,
            "seed": seed,
            "weights": list(mixture.weights),
        }

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.steps

    def __iter__(self) -> Iterator[TokenBatch]:
        """Continue after the last batch delivered, for the length of an epoch."""
        for _ in range(self.steps):
            if self._batches is None:
                self._batches = self._from(self.delivered)
            yield next(self._batches)

    def _from(self, start: int) -> Iterator[TokenBatch]:
        """All batches from number ``start``, in the group that begins at ``self._positions``."""
        in_process = self.workers > 0
        self._cursors = [
            _Cursor(stream, Position(*position[:-1]), position[-1], in_process=in_process)
            for stream, position in zip(self.streams, self._positions, strict=True)
        ]
        first, skipped = divmod(start, self._group)
        for number in count(first):
            rows, table = self._take(number)
            tokens = np.array([len(row.ids) for _, row in rows])
            sources = np.array([source for source, _ in rows])
            for step in table[skipped:]:
                self.delivered += 1
                if self.delivered % self._group == 0:
                    self._positions = [cursor.position for cursor in self._cursors]
                self.tally.add(sources[step], tokens[step])
                yield self._batch([rows[index][1] for index in step[self._slice].tolist()])
            skipped = 0

    def _take(self, number: int) -> tuple[list[tuple[int, StreamedRow]], np.ndarray]:
        """The rows of a group of steps with their sources, and which of them each step has: ``[steps, B]``."""
        sources = self.mixture.sources(number * self._size, (number + 1) * self._size).tolist()
        rows = [(source, self._cursors[source].take()) for source in sources]
        rng = np.random.default_rng([self.seed, number])
        if self._group == 1:
            return rows, rng.permutation(self._size)[None]
        by_length = np.argsort([len(row.ids) for _, row in rows], kind="stable")
        return rows, rng.permutation(by_length.reshape(self._group, -1))

    def _batch(self, rows: Sequence[StreamedRow]) -> TokenBatch:
        lengths = np.concatenate([row.lengths for row in rows])
        masks = [row.mask for row in rows if row.mask is not None]
        starts = np.cumsum(lengths) - lengths
        corpus = Corpus(
            path=Path(),
            ids=np.concatenate([row.ids for row in rows]),
            offsets=np.append(starts, lengths.sum()),
            target_mask=np.concatenate(masks) if masks else None,
            prompt_bytes=None,
            prompt_offsets=None,
            labels=None,
            meta={},
        )
        offsets = np.cumsum([0, *(len(row.lengths) for row in rows)])
        batch = self.dataset(corpus, Rows(starts, lengths, offsets))[np.arange(len(rows))]
        self._tokens += len(corpus.ids)
        self._numel += batch.ids.numel()
        return batch

    def report(self) -> Iterator[str]:
        """Rows and tokens delivered of each source, and what became of its records since this process started."""
        of_rank = "" if self._gather is None else f"rank {self.rank}: "
        yield from (of_rank + line for line in self.tally.lines())
        if self._numel:
            yield f"padding: {1 - self._tokens / self._numel:.1%}"
        for name, cursor in zip(self.mixture.names, self._cursors, strict=True):
            yield from (f"{name}: {line}" for line in cursor.report)

    def state_dict(self) -> dict[str, Any]:
        """Batches delivered, where the group of the next one begins in each source, and the identity of the rows.

        With files of its own for each rank, all ranks must call it at once, as they do when a checkpoint is saved.
        """
        place: dict[str, Any] = {"positions": self._positions, "delivered": self.tally.state_dict()}
        if self._gather is not None:
            place = {"by rank": self._gather(place)}
        return {"batches": self.delivered} | place | self._identity

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume after the last batch before a checkpoint.

        Raises:
            ValueError: it was saved with other data or settings, for which the position means other rows.
        """
        refuse_other_data(state, self._identity, self.ranks)
        place = state if self._gather is None else state["by rank"][self.rank]
        self.delivered, self._positions = state["batches"], place["positions"]
        self.tally.load_state_dict(place["delivered"])
        self.close()

    def close(self) -> None:
        """End the worker processes; the next iterator starts new ones."""
        self._batches, self._cursors = None, []


def quick_fingerprint(source: Source) -> str:
    """Identifies a source without reading all of it: size and both ends of a file, the commit of a Hub data set."""
    if source.kind == "hub":
        return source.fingerprint()
    size = Path(source.name).stat().st_size
    with open(source.name, "rb") as file:
        content = hashlib.sha256(file.read(_EDGE))
        file.seek(max(0, size - _EDGE))
        content.update(file.read(_EDGE))
    return f"{size} bytes, ends {content.hexdigest()}"
