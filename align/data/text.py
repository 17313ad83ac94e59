"""Plain text for pretraining: documents packed into rows of the context."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

import numpy as np

from align.data.corpus import CorpusWriter
from align.data.formats import document_text
from align.data.module import progress_bar
from align.data.readers import Source
from align.data.records import BadRecords
from align.data.row_data import Layout, RowData
from align.data.rows import document_rows, stream_rows
from align.tokenizer import Tokenizer
from align.tokenizer.parallel import chunked, ordered_map


class TextData(RowData):
    """Documents ``<bos> text <eos>`` (bos where the tokenizer has one of its own), tokenised once and packed.

    Args:
        packing: stream lays documents one after another and cuts rows of the context; documents keeps every document
            whole (longer ones are cut into rows) and lets none see another
        block_diagonal: With stream: let no document see another, as documents packing always does
        field: Field of a record that holds the text
        processes: Processes that tokenise
    """

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
        encode = partial(_encode_documents, self.tokenizer, self.tokenizer.opening_ids, (self._eos_id(),))
        with progress_bar(sources, split) as advance:
            for ids, lengths in ordered_map(encode, chunked(self._texts(sources, bad, advance)), self.processes):
                writer.append(ids, lengths)
        return []

    def _texts(self, sources: Sequence[Source], bad: BadRecords, advance: Callable[[int], None]) -> Iterator[str]:
        for record in chain.from_iterable(source.records(bad) for source in sources):
            try:
                text = document_text(record.fields, self.field)
            except ValueError as error:
                bad.add(record.source, record.place, str(error))
                continue
            advance(len(text))
            yield text

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
