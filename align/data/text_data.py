"""Data modules for language modelling: text for pretraining, chats for supervised fine-tuning."""

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from align.data.collate import RowDataset
from align.data.corpus import Corpus, CorpusWriter, corpus_key
from align.data.data_module import TokenData, tokenization_bar
from align.data.formats.chats import CHAT_FORMATS, ChatFormat
from align.data.formats.fields import ChatRecord
from align.data.formats.texts import Text, TextFormat
from align.data.joined_corpus import JoinedCorpus
from align.data.mixing import Files, Mixture, WeightedSource
from align.data.readers import BadRecords, Source, find_sources
from align.data.rows import Packing, Rows, best_fit_rows, single_rows, wrapped_rows
from align.data.streaming import BlockStream, CountedSource, Document, Encoder, StreamLoader, quick_fingerprint
from align.data.tokenize import EncodedChat, RenderingReport, TruncationReport, encode_chat, encode_records
from align.tokenizer import Tokenizer
from align.tokenizer.chat_template import check_template, text_of
from align.tokenizer.process_pool import chunked, ordered_map
from align.tokenizer.prompts import with_system

_STREAMED_CHARS = 1 << 16
"""Characters of text tokenized at once while streaming"""


class RowData(TokenData):
    """Files or Hub data sets to ``TokenBatch``: each record is a document, and documents are laid out in rows.

    Args:
        streaming: Tokenize and pack the train records while training instead of ahead, without a cache: for data that
            do not fit on the disk, and Hub data sets that are not downloaded. Needs trainer.max_steps; validation and
            test are cached as ever
        shuffle_buffer: Rows that are packed and shuffled together while streaming; each is held in memory
    """

    def __init__(
        self,
        tokenizer: str,
        train: Files,
        *,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
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
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        self._streamed = ("train",) if streaming else ()
        self._stream_loader: StreamLoader | None = None

    packing: str
    """Name of the packing"""
    _packing: Packing

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

    def _bounds_of(self, corpus: Corpus, split: str) -> np.ndarray:
        if len(corpus.offsets) > 2 or not self.val_fraction or split == "test":
            return super()._bounds_of(corpus, split)
        # By bytes, not tokens, so that every tokenizer holds out the same text.
        filled = np.cumsum(self.tokenizer.token_bytes[corpus.ids])
        end = int(np.searchsorted(filled, int(filled[-1] * (1 - self.val_fraction)))) + 1
        return np.array([0, end] if split == "train" else [end, corpus.offsets[-1]])

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
            sources = [source for one in self._stream_sources() for source in find_sources(one.files)]
            self.fingerprints |= {source.name: quick_fingerprint(source) for source in sources}

    def train_dataloader(self) -> Any:
        """Shuffled, resumable batches, from the cache or streamed; with overfit_batches always the first ones.

        Raises:
            ValueError: the data are streamed, and the Trainer has no ``max_steps``, or ``overfit_batches``.
        """
        if not self.streaming:
            return super().train_dataloader()
        sharing, sources = self._data_parallel(), self._stream_sources()
        streams = [
            BlockStream(
                find_sources(one.files),
                self._encoder(),
                packing=self._packing,
                width=self.context + 1,
                rows=self.shuffle_buffer,
                seed=(self.seed, number),
                on_bad_record=self.on_bad_record,
            )
            for number, one in enumerate(sources)
        ]
        self._stream_loader = StreamLoader(
            streams,
            Mixture.of(sources),
            self._row_dataset,
            steps=self._stream_steps(),
            batch_size=self.batch_size,
            seed=self.seed,
            ranks=sharing["num_replicas"],
            rank=sharing["rank"],
            workers=self.workers,
            identity=self._stream_identity(streams),
        )
        return self._stream_loader

    def teardown(self, stage: str) -> None:
        """Report what training read of each source of a mixture or stream."""
        super().teardown(stage)
        if self._stream_loader is not None:
            for line in self._stream_loader.report():
                rank_zero_info(f"train: read {line}")
            self._stream_loader.close()
        self._stream_loader = None

    def _stream_sources(self) -> list[WeightedSource]:
        files: Any = self._given["train"]
        return self._weighted or [WeightedSource(files, 1.0, "train")]

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

    def _stream_identity(self, streams: Sequence[BlockStream]) -> dict[str, Any]:
        """What gives a position in the stream its meaning, besides weights, seed and batch size."""
        files = [[self.fingerprints[source.name] for source in stream.sources] for stream in streams]
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


class TextData(RowData):
    """Documents ``<bos> text <eos>`` (without bos if the tokenizer has none of its own), tokenized once and packed.

    Args:
        packing: wrap concatenates documents and splits them into rows; best_fit keeps every document whole, unless it
            is longer than a row, and attention within it
        block_diagonal: Keep attention within a document with wrap too
        format: Format of the records; None: Text, whose setting is the name of the field
        processes: Processes that tokenize
    """

    _renders_chats = False

    def __init__(
        self,
        tokenizer: str,
        train: Files,
        *,
        packing: Literal["wrap", "best_fit"] = "wrap",
        block_diagonal: bool = False,
        format: TextFormat | None = None,
        processes: int = 1,
        **kwargs: Any,
    ) -> None:
        """Check the settings; ``TokenData`` has those that all data modules share.

        Raises:
            ValueError: a setting is invalid.
        """
        super().__init__(tokenizer, train, **kwargs)
        if processes < 1:
            raise ValueError(f"processes is {processes}; it must be at least 1")
        wrap = partial(wrapped_rows, width=self.context + 1, block_diagonal=block_diagonal)
        self._pack(
            packing,
            {
                "wrap": Packing(wrap, fixed_width=True, block_diagonal=block_diagonal),
                "best_fit": _best_fit(self.context + 1),
            },
        )
        self.processes, self.format = processes, format or Text()

    def _settings(self) -> dict[str, Any]:
        return {"format": self.format.identity}

    def _tokenize(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        encode = partial(_encode_documents, self.tokenizer, self.tokenizer.opening_ids, (self._eos_id(),))
        with tokenization_bar(sources, split) as advance:

            def with_progress(text: str) -> str:
                advance(len(text))
                return text

            texts = encode_records(sources, bad, format=self.format, formats=(), encode=with_progress)
            for ids, lengths in ordered_map(encode, chunked(texts), self.processes):
                writer.append(ids, lengths)
        return []

    def _encoder(self) -> "_TextEncoder":
        return _TextEncoder(self.tokenizer, self._eos_id(), self.format)


@dataclass(frozen=True)
class _TextEncoder:
    """Tokenizes the texts of a stream."""

    tokenizer: Tokenizer
    eos_id: int
    format: TextFormat

    def documents(self, source: CountedSource, bad: BadRecords) -> Iterator[Document]:
        """The documents of the records that are not known already and can be used."""
        numbers: deque[int] = deque()

        def texts() -> Iterator[str]:
            for text in encode_records([source], bad, format=self.format, formats=(), encode=str):
                if not source.skipping:
                    numbers.append(source.read - 1)
                    yield text

        for chunk in chunked(texts(), _STREAMED_CHARS):
            ids, lengths = _encode_documents(self.tokenizer, self.tokenizer.opening_ids, (self.eos_id,), chunk)
            for document in np.split(ids, np.cumsum(lengths)[:-1]):
                yield Document(numbers.popleft(), document, None)

    def report(self) -> list[str]:
        """Nothing: a text is never changed."""
        return []


def _best_fit(width: int) -> Packing:
    return Packing(partial(best_fit_rows, width=width), fixed_width=True, block_diagonal=True)


def _encode_documents(
    tokenizer: Tokenizer, opening: Sequence[int], closing: Sequence[int], texts: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of documents, concatenated, and the number of tokens of each; here, so that it can be pickled."""
    ids, offsets = tokenizer.encode_to_array(texts, prefix=opening, suffix=closing)
    return ids, np.diff(offsets)


class ChatData(RowData):
    """Chats, rendered with the tokenizer's chat template; targets are the responses and the ends of their turns.

    A chat longer than a row is truncated: the start of the prompt, then the end of the response (docs/data.md).

    Args:
        format: Format of the records; None: detected from each file's first record
        system_prompt: System message of chats that have none; null: none
        packing: best_fit puts several whole chats into a row, with attention within each; none one, and rows of similar
            length share a batch
    """

    _masked = True

    def __init__(
        self,
        tokenizer: str,
        train: Files,
        *,
        format: ChatFormat | None = None,
        system_prompt: str | None = None,
        packing: Literal["none", "best_fit"] = "none",
        **kwargs: Any,
    ) -> None:
        """Check the settings; ``TokenData`` has those that all data modules share.

        Raises:
            ValueError: a setting is invalid.
        """
        super().__init__(tokenizer, train, **kwargs)
        single = Packing(single_rows, fixed_width=False, block_diagonal=False)
        self._pack(packing, {"none": single, "best_fit": _best_fit(self.context + 1)})
        self.format, self.system_prompt = format, system_prompt

    def _settings(self) -> dict[str, Any]:
        settings = {"format": self.format and self.format.identity, "context": self.context}
        return settings | {"system_prompt": self.system_prompt}

    def _tokenize(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        encoder = self._encoder()
        with tokenization_bar(sources, split) as advance:

            def encode(chat: ChatRecord) -> EncodedChat:
                advance(sum(len(text_of(message.get("content"))) for message in chat.messages))
                return encoder.encode(chat)

            for chat in encode_records(sources, bad, format=self.format, formats=CHAT_FORMATS, encode=encode):
                writer.append(chat.ids, [len(chat.ids)], chat.mask)
                encoder.count(chat)
        writer.meta["truncation"] = encoder.truncated.as_dict("chats")
        return encoder.report()

    def _encoder(self) -> "_ChatEncoder":
        check_template(self.tokenizer)
        return _ChatEncoder(self.tokenizer, self.context + 1, self.format, self.system_prompt)


@dataclass
class _ChatEncoder:
    """Renders and tokenizes chats, and counts what became of them."""

    tokenizer: Tokenizer
    limit: int
    """Tokens of a row"""
    format: ChatFormat | None
    system_prompt: str | None
    chats: int = 0
    truncated: TruncationReport = field(default_factory=TruncationReport)
    rendering: RenderingReport = field(default_factory=RenderingReport)

    def encode(self, chat: ChatRecord) -> EncodedChat:
        """Render a chat and truncate it.

        Raises:
            ValueError: it can't be used.
        """
        return encode_chat(with_system(chat.messages, self.system_prompt), self.tokenizer, self.limit, tools=chat.tools)

    def count(self, chat: EncodedChat) -> None:
        """Count a chat that is used."""
        self.chats += 1
        self.truncated.add(chat.truncation)
        self.rendering.add(chat.dropped, unlike=chat.unlike)

    def documents(self, source: CountedSource, bad: BadRecords) -> Iterator[Document]:
        """The documents of the records that are not known already and can be used."""

        def encode(chat: ChatRecord) -> EncodedChat | None:
            return None if source.skipping else self.encode(chat)

        dtype = np.min_scalar_type(self.tokenizer.vocab_size)
        for chat in encode_records([source], bad, format=self.format, formats=CHAT_FORMATS, encode=encode):
            if chat is not None:
                self.count(chat)
                yield Document(source.read - 1, chat.ids.astype(dtype), chat.mask)

    def report(self) -> list[str]:
        """What the chat template did not render, and what was truncated."""
        lines = self.rendering.lines("chats", total=self.chats)
        return lines + self.truncated.lines("chats", total=self.chats, limit=self.limit)
