"""Chats for supervised fine-tuning: only the assistant's tokens count."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from align.data.corpus import CorpusWriter
from align.data.encoding import encode_records
from align.data.formats import ChatFormat, chat_messages, detect_format
from align.data.module import progress_bar
from align.data.readers import Source
from align.data.records import BadRecords
from align.data.row_data import Layout, RowData
from align.data.rows import document_rows, single_rows
from align.data.truncation import EncodedChat, TruncationReport, encode_chat


class ChatData(RowData):
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
        with progress_bar(sources, split) as advance:

            def encode(fields: Mapping[str, Any], format: ChatFormat) -> EncodedChat:
                messages = chat_messages(fields, format)
                advance(sum(len(message["content"]) for message in messages))
                return encode_chat(messages, self.tokenizer, limit)

            for chat in encode_records(sources, bad, format=self.format, detect=detect_format, encode=encode):
                writer.append(chat.ids, [len(chat.ids)], chat.counted)
                report.add(chat.cut)
        writer.meta["truncation"] = report.as_dict("chats")
        return report.lines("chats", total=writer.documents, limit=limit)

    def _lay_out(self, bounds: np.ndarray) -> Layout:
        if self.packing:
            return Layout(document_rows(bounds, self.context + 1), fixed_width=True, block_diagonal=True)
        return Layout(single_rows(bounds), fixed_width=False, block_diagonal=False)
