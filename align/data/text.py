"""Plain text for pretraining: documents packed into rows of the context."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np

from align.data.corpus import CorpusWriter
from align.data.formats import document_text
from align.data.module import Layout, TokenData, progress_bar
from align.data.readers import Source
from align.data.records import BadRecords
from align.data.rows import document_rows, stream_rows

_CHUNK = 4_000_000
"""Characters that one process tokenises at a time: the memory of tokenising is a small multiple of it"""


class TextData(TokenData):
    """Documents ``<bos> text <eos>`` (bos where the tokenizer has one of its own), tokenised once and packed.

    Args:
        packing: stream lays documents one after another and cuts rows of the context; documents keeps every document
            whole (longer ones are cut into rows) and lets none see another
        block_diagonal: With stream: let no document see another, as documents packing always does
        field: Field of a record that holds the text
        processes: Processes that tokenise
    """

    _masked = False

    def __init__(
        self,
        tokenizer: str,
        train: str | list[str],
        *,
        packing: Literal["stream", "documents"] = "stream",
        block_diagonal: bool = False,
        field: str = "text",
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
        self.packing, self.block_diagonal, self.field, self.processes = packing, block_diagonal, field, processes

    def _settings(self) -> dict[str, Any]:
        return {"field": self.field}

    def _tokenise(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        bos, eos = self.tokenizer.bos_id, self._eos_id()
        prefix = [bos] if bos is not None and bos != eos else []
        with progress_bar(sources, split) as advance:
            for texts in self._chunks(sources, bad):
                ids, offsets = self.tokenizer.encode_to_array(
                    texts, prefix=prefix, suffix=[eos], processes=self.processes
                )
                writer.append(ids, np.diff(offsets))
                advance(sum(map(len, texts)))
        return []

    def _chunks(self, sources: Sequence[Source], bad: BadRecords) -> Iterator[list[str]]:
        """Documents, a few megabytes at a time."""
        texts: list[str] = []
        room = _CHUNK * self.processes
        for record in chain.from_iterable(source.records(bad) for source in sources):
            try:
                text = document_text(record.fields, self.field)
            except ValueError as error:
                bad.add(record.source, record.place, str(error))
                continue
            texts.append(text)
            room -= len(text)
            if room <= 0:
                yield texts
                texts, room = [], _CHUNK * self.processes
        if texts:
            yield texts

    def _lay_out(self, bounds: np.ndarray) -> Layout:
        width = self.context + 1
        if self.packing == "documents":
            return Layout(document_rows(bounds, width), fixed_width=True, block_diagonal=True)
        rows = stream_rows(bounds, width, block_diagonal=self.block_diagonal)
        return Layout(rows, fixed_width=True, block_diagonal=self.block_diagonal)
