"""Data modules for language modelling: text for pretraining, chats for supervised fine-tuning."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from align.data.collate import RowDataset
from align.data.corpus import CorpusWriter
from align.data.data_module import TokenData, tokenization_bar
from align.data.formats.chats import CHAT_FORMATS, ChatFormat
from align.data.formats.fields import ChatRecord
from align.data.formats.texts import Text, TextFormat
from align.data.readers import BadRecords, Source
from align.data.rows import Rows, document_rows, single_rows, stream_rows
from align.data.tokenize import EncodedChat, RenderingReport, TruncationReport, encode_chat, encode_records
from align.tokenizer import Tokenizer
from align.tokenizer.chat_template import check_template
from align.tokenizer.process_pool import chunked, ordered_map
from align.tokenizer.prompts import with_system


class Layout(NamedTuple):
    """Documents laid out in rows.

    Attributes:
        rows: the rows.
        fixed_width: whether every batch is ``context + 1`` tokens wide; otherwise rows of similar length share a batch.
        block_diagonal: whether attention stays within a document.
    """

    rows: Rows
    fixed_width: bool
    block_diagonal: bool


class RowData(TokenData):
    """Files or Hub data sets to ``TokenBatch``: each record is a document, and documents are laid out in rows."""

    def _lay_out(self, bounds: np.ndarray) -> Layout:
        """Lay out the documents between ``bounds``."""
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
        """``[documents + 1]`` offsets of a split's documents in its corpus."""
        records = self._records(split)
        return np.asarray(self._corpus(split).offsets)[records.start : records.stop + 1]

    def _counts(self, split: str) -> dict[str, Any]:
        dataset, bounds = self._datasets[split], self._bounds(split)
        return {
            "documents": len(bounds) - 1,
            "tokens": int(bounds[-1] - bounds[0]),
            "target_tokens": _targets_per_pass(dataset),
            "rows": len(dataset),
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
        packing: stream concatenates documents and splits them into rows; documents keeps every document whole, unless
            it is longer than a row, and attention within it
        block_diagonal: Keep attention within a document with stream packing too
        format: Format of the records; None: Text, whose setting is the name of the field
        processes: Processes that tokenize
    """

    _renders_chats = False

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
        """Check the settings; ``TokenData`` has those that all data modules share.

        Raises:
            ValueError: a setting is invalid.
        """
        super().__init__(tokenizer, train, **kwargs)
        if processes < 1:
            raise ValueError(f"processes is {processes}; it must be at least 1")
        self.packing, self.block_diagonal, self.processes = packing, block_diagonal, processes
        self.format = format or Text()

    def _settings(self) -> dict[str, Any]:
        return {"format": self.format.identity}

    def _tokenize(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        encode = partial(_encode_documents, self.tokenizer, self.tokenizer.opening_ids, (self._eos_id(),))
        with tokenization_bar(sources, split) as advance:
            texts = encode_records(sources, bad, format=self.format, formats=(), encode=str, advance=advance)
            for ids, lengths in ordered_map(encode, chunked(texts), self.processes):
                writer.append(ids, lengths)
        return []

    def _bounds(self, split: str) -> np.ndarray:
        corpus = self._corpus(split)
        if len(corpus.offsets) > 2 or not self.val_fraction or split == "test":
            return super()._bounds(split)
        # By bytes, not tokens, so that every tokenizer holds out the same text.
        filled = np.cumsum(self.tokenizer.token_bytes[corpus.ids])
        end = int(np.searchsorted(filled, int(filled[-1] * (1 - self.val_fraction)))) + 1
        return np.array([0, end] if split == "train" else [end, corpus.offsets[-1]])

    def _lay_out(self, bounds: np.ndarray) -> Layout:
        width = self.context + 1
        if self.packing == "documents":
            return Layout(document_rows(bounds, width), fixed_width=True, block_diagonal=True)
        rows = stream_rows(bounds, width, block_diagonal=self.block_diagonal)
        return Layout(rows, fixed_width=True, block_diagonal=self.block_diagonal)


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
        packing: Several whole chats per row, with attention within each; otherwise one chat per row, and rows of
            similar length share a batch
    """

    _masked = True

    def __init__(
        self,
        tokenizer: str,
        train: str | list[str],
        *,
        format: ChatFormat | None = None,
        system_prompt: str | None = None,
        packing: bool = False,
        **kwargs: Any,
    ) -> None:
        """Check the settings; ``TokenData`` has those that all data modules share.

        Raises:
            ValueError: a setting is invalid.
        """
        super().__init__(tokenizer, train, **kwargs)
        self.format, self.system_prompt, self.packing = format, system_prompt, packing

    def _settings(self) -> dict[str, Any]:
        settings = {"format": self.format and self.format.identity, "context": self.context}
        return settings | {"system_prompt": self.system_prompt}

    def _tokenize(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        check_template(self.tokenizer)
        truncated, rendering, limit = TruncationReport(), RenderingReport(), self.context + 1
        with tokenization_bar(sources, split) as advance:

            def encode(chat: ChatRecord) -> EncodedChat:
                messages = with_system(chat.messages, self.system_prompt)
                return encode_chat(messages, self.tokenizer, limit, tools=chat.tools)

            chats = encode_records(
                sources, bad, format=self.format, formats=CHAT_FORMATS, encode=encode, advance=advance
            )
            for chat in chats:
                writer.append(chat.ids, [len(chat.ids)], chat.mask)
                truncated.add(chat.truncation)
                rendering.add(chat.dropped, unlike=chat.unlike)
        writer.meta["truncation"] = truncated.as_dict("chats")
        lines = rendering.lines("chats", total=writer.documents)
        return lines + truncated.lines("chats", total=writer.documents, limit=limit)

    def _lay_out(self, bounds: np.ndarray) -> Layout:
        if self.packing:
            return Layout(document_rows(bounds, self.context + 1), fixed_width=True, block_diagonal=True)
        return Layout(single_rows(bounds), fixed_width=False, block_diagonal=False)
