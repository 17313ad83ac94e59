"""Data modules for language modelling: text for pretraining, chats for supervised fine-tuning."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from align.data.corpus import Corpus, CorpusWriter
from align.data.data_module import tokenization_bar
from align.data.formats.chats import CHAT_FORMATS, ChatFormat
from align.data.formats.fields import ChatRecord
from align.data.formats.texts import Text, TextFormat
from align.data.mixing import Files
from align.data.readers import BadRecords, Source
from align.data.row_data import RowData
from align.data.rows import Packing, best_fit_rows, single_rows, wrapped_rows
from align.data.streaming import CountedSource, Document
from align.data.tokenize import EncodedChat, RenderingReport, TruncationReport, encode_chat, encode_records
from align.tokenizer import Tokenizer
from align.tokenizer.chat_template import check_template
from align.tokenizer.process_pool import chunked, ordered_map
from align.tokenizer.prompts import with_system

_STREAMED_CHARS = 1 << 16
"""Characters of text tokenized at once while streaming"""


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
            texts = encode_records(sources, bad, format=self.format, formats=(), encode=str, advance=advance)
            for ids, lengths in ordered_map(encode, chunked(texts), self.processes):
                writer.append(ids, lengths)
        return []

    def _records_of(self, corpus: Corpus, split: str) -> range:
        # The only document is in both splits, a part in each.
        return range(1) if len(corpus.offsets) == 2 else super()._records_of(corpus, split)

    def _bounds_of(self, corpus: Corpus, split: str) -> np.ndarray:
        if len(corpus.offsets) > 2 or not self.val_fraction or split == "test":
            return super()._bounds_of(corpus, split)
        # By bytes, not tokens, so that every tokenizer holds out the same text.
        filled = np.cumsum(self.tokenizer.token_bytes[corpus.ids])
        end = int(np.searchsorted(filled, int(filled[-1] * (1 - self.val_fraction)))) + 1
        return np.array([0, end] if split == "train" else [end, corpus.offsets[-1]])

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
                return encoder.encode(chat)

            chats = encode_records(
                sources, bad, format=self.format, formats=CHAT_FORMATS, encode=encode, advance=advance
            )
            for chat in chats:
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
