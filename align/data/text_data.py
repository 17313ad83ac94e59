"""What TextData and ChatData share: documents laid out in rows of tokens, each token a target or not.

Plain text for pretraining: documents packed into rows of the context.

Chats for supervised fine-tuning: only the assistant's tokens count.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from align.data.collate import RowDataset
from align.data.corpus import CorpusWriter
from align.data.data_module import TokenData, tokenization_bar
from align.data.formats.chats import CHAT_FORMATS, ChatFormat
from align.data.formats.fields import Chat
from align.data.formats.texts import Text, TextFormat
from align.data.readers import BadRecords, Source
from align.data.rows import Rows, document_rows, single_rows, stream_rows
from align.data.tokenize import EncodedChat, TruncationReport, encode_chat, encode_records
from align.tokenizer import Tokenizer
from align.tokenizer.process_pool import chunked, ordered_map


class Layout(NamedTuple):
    """How documents stand in rows.

    Attributes:
        rows: the rows.
        fixed_width: every batch is ``context + 1`` tokens wide; otherwise batches are of rows of similar length.
        block_diagonal: attention stays inside a document.
    """

    rows: Rows
    fixed_width: bool
    block_diagonal: bool


class RowData(TokenData):
    """Files or Hub datasets to ``TokenBatch``: a record is a document, documents are laid out in rows."""

    def _lay_out(self, bounds: np.ndarray) -> Layout:
        """Rows of the documents between ``bounds``."""
        raise NotImplementedError

    def _dataset(self, split: str) -> RowDataset:
        layout = self._lay_out(self._bounds(split))
        return RowDataset(
            corpus=self._corpus(split),
            rows=layout.rows,
            token_bytes=self.tokenizer.token_bytes,
            pad_id=self._pad_id(),
            width=self.context + 1,
            fixed_width=layout.fixed_width,
            block_diagonal=layout.block_diagonal,
        )

    def _bounds(self, split: str) -> np.ndarray:
        """Where a split's documents begin in its corpus, and the end."""
        corpus = self._corpus(split)
        offsets = np.asarray(corpus.offsets)
        if len(offsets) > 2 or not self.val_fraction or split == "test":
            records = self._records(split)
            return offsets[records.start : records.stop + 1]
        # Bytes, not tokens, decide, so that the cut falls at the same text whatever the tokenizer.
        filled = np.cumsum(self.tokenizer.token_bytes[corpus.ids])
        cut = int(np.searchsorted(filled, int(filled[-1] * (1 - self.val_fraction)))) + 1
        return np.array([0, cut] if split == "train" else [cut, offsets[-1]])

    def _counts(self, split: str) -> dict[str, Any]:
        dataset, bounds = self._datasets[split], self._bounds(split)
        return {
            "documents": len(bounds) - 1,
            "tokens": int(bounds[-1] - bounds[0]),
            "counted_tokens": _counted(dataset),
            "rows": len(dataset),
        }


def _counted(dataset: RowDataset) -> int:
    """Targets of one pass."""
    if dataset.corpus.counted is None:
        return int((dataset.rows.lengths - 1).sum())
    ends = np.cumsum(dataset.corpus.counted)
    first, last = dataset.rows.starts, dataset.rows.starts + dataset.rows.lengths - 1
    return int((ends[last] - ends[first]).sum())


class TextData(RowData):
    """Documents ``<bos> text <eos>`` (bos where the tokenizer has one of its own), tokenised once and packed.

    Args:
        packing: stream lays documents one after another and cuts rows of the context; documents keeps every document
            whole (longer ones are cut into rows) and lets none see another
        block_diagonal: With stream: let no document see another, as documents packing always does
        format: Format of the records; None: Text, whose setting is the name of the field
        processes: Processes that tokenise
    """

    def __init__(
        self,
        tokenizer: str,
        train: str | list[str],
        *,
        packing: Literal["stream", "documents"] = "stream",
        block_diagonal: bool = False,
        format: TextFormat | None = None,
        processes: int = 1,
        **kwargs: Any,
    ) -> None:
        """Check the settings; see TokenData for those that all data share.

        Raises:
            ValueError: a setting is impossible.
        """
        super().__init__(tokenizer, train, **kwargs)
        if processes < 1:
            raise ValueError(f"processes is {processes}; it must be at least 1")
        self.packing, self.block_diagonal, self.processes = packing, block_diagonal, processes
        self.format = format or Text()

    def _settings(self) -> dict[str, Any]:
        return {"format": self.format.identity}

    def _tokenise(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        encode = partial(_encode_documents, self.tokenizer, self.tokenizer.opening_ids, (self._eos_id(),))
        with tokenization_bar(sources, split) as advance:

            def counted(text: str) -> str:
                advance(len(text))
                return text

            texts = encode_records(sources, bad, format=self.format, formats=(), encode=counted)
            for ids, lengths in ordered_map(encode, chunked(texts), self.processes):
                writer.append(ids, lengths)
        return []

    def _lay_out(self, bounds: np.ndarray) -> Layout:
        width = self.context + 1
        if self.packing == "documents":
            return Layout(document_rows(bounds, width), fixed_width=True, block_diagonal=True)
        rows = stream_rows(bounds, width, block_diagonal=self.block_diagonal)
        return Layout(rows, fixed_width=True, block_diagonal=self.block_diagonal)


def _encode_documents(
    tokenizer: Tokenizer, opening: Sequence[int], closing: Sequence[int], texts: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of documents, one after another, and the tokens of each (here, so that processes can be sent it)."""
    ids, offsets = tokenizer.encode_to_array(texts, prefix=opening, suffix=closing)
    return ids, np.diff(offsets)


class ChatData(RowData):
    """Chats rendered with the tokenizer's template; the loss counts assistant content and the end of its turn.

    A chat longer than a row is cut: the prompt from its start, then the response from its end (docs/data.md).

    Args:
        format: Format of the records; None: detected from each file's first record
        packing: Several whole chats a row, none seeing another; otherwise one chat a row, rows of similar length
            together
    """

    _masked = True

    def __init__(
        self,
        tokenizer: str,
        train: str | list[str],
        *,
        format: ChatFormat | None = None,
        packing: bool = False,
        **kwargs: Any,
    ) -> None:
        """Check the settings; see TokenData for those that all data share.

        Raises:
            ValueError: a setting is impossible.
        """
        super().__init__(tokenizer, train, **kwargs)
        self.format, self.packing = format, packing

    def _settings(self) -> dict[str, Any]:
        return {"format": self.format and self.format.identity, "context": self.context}

    def _tokenise(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        report, limit = TruncationReport(), self.context + 1
        with tokenization_bar(sources, split) as advance:

            def encode(messages: Chat) -> EncodedChat:
                advance(sum(len(message["content"]) for message in messages))
                return encode_chat(messages, self.tokenizer, limit)

            for chat in encode_records(sources, bad, format=self.format, formats=CHAT_FORMATS, encode=encode):
                writer.append(chat.ids, [len(chat.ids)], chat.counted)
                report.add(chat.cut)
        writer.meta["truncation"] = report.as_dict("chats")
        return report.lines("chats", total=writer.documents, limit=limit)

    def _lay_out(self, bounds: np.ndarray) -> Layout:
        if self.packing:
            return Layout(document_rows(bounds, self.context + 1), fixed_width=True, block_diagonal=True)
        return Layout(single_rows(bounds), fixed_width=False, block_diagonal=False)
