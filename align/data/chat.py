"""Chats for supervised fine-tuning: only the assistant's tokens count."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from align.data.corpus import CorpusWriter
from align.data.formats import ChatFormat, Messages, chat_messages, detect_format
from align.data.module import Layout, TokenData, progress_bar
from align.data.readers import Source
from align.data.records import BadRecords, Record
from align.data.rows import document_rows, single_rows
from align.data.truncation import TruncationReport, encode_chat

_CHATS = 4096
"""Chats held in memory before they are written"""


class ChatData(TokenData):
    """Chats rendered with the tokenizer's template; the loss counts assistant content and the end of its turn.

    A chat longer than a row is cut: the prompt from its start, then the response from its end (docs/data.md).

    Args:
        format: Fields of a record; auto: told from each file's first record
        packing: Several whole chats a row, none seeing another; otherwise one chat a row, rows of similar length
            together
    """

    _masked = True

    def __init__(
        self,
        tokenizer: str,
        train: str | list[str],
        *,
        format: Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt"] = "auto",
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
        return {"format": self.format, "context": self.context}

    def _tokenise(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        report, limit = TruncationReport(), self.context + 1
        ids: list[np.ndarray] = []
        counted: list[np.ndarray] = []

        def flush() -> None:
            if ids:
                writer.append(np.concatenate(ids), np.array([len(chat) for chat in ids]), np.concatenate(counted))
                ids.clear()
                counted.clear()

        with progress_bar(sources, split) as advance:
            for record, messages in self._chats(sources, bad):
                try:
                    chat_ids, chat_counted, cut = encode_chat(messages, self.tokenizer, limit)
                except ValueError as error:
                    bad.add(record.source, record.place, str(error))
                    continue
                ids.append(chat_ids)
                counted.append(chat_counted)
                report.add(cut)
                advance(sum(len(message["content"]) for message in messages))
                if len(ids) == _CHATS:
                    flush()
            flush()
        writer.meta["truncation"] = report.as_dict()
        return report.lines(total=writer.documents, limit=limit)

    def _chats(self, sources: Sequence[Source], bad: BadRecords) -> Iterator[tuple[Record, Messages]]:
        for source in sources:
            format: ChatFormat | None = None if self.format == "auto" else self.format
            for record in source.records(bad):
                if format is None:
                    format = _detected(record)
                try:
                    messages = chat_messages(record.fields, format)
                except ValueError as error:
                    bad.add(record.source, record.place, str(error))
                    continue
                yield record, messages

    def _lay_out(self, bounds: np.ndarray) -> Layout:
        if self.packing:
            return Layout(document_rows(bounds, self.context + 1), fixed_width=True, block_diagonal=True)
        return Layout(single_rows(bounds), fixed_width=False, block_diagonal=False)


def _detected(record: Record) -> ChatFormat:
    try:
        return detect_format(record.fields)
    except ValueError as error:
        raise ValueError(f"{record.source}: {record.place}: {error}") from None
