"""Datasets whose item is a whole batch: an array of indices to a batch, with one gather over the corpus.

Legend: B rows (pairs, prompts) of a batch, R rows (pairs, prompts) of a split, T tokens of a row, P tokens of the
longest prompt.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from align.batches import FeedbackBatch, PairBatch, PromptBatch, ResponseRows, TokenBatch
from align.data.corpus import Corpus
from align.data.rows import Rows, ranges
from align.tokenizer.prompts import Columns, Prompt

Batch = TypeVar("Batch", covariant=True)


class BatchDataset(Protocol[Batch]):
    """A dataset that loaders index with all rows of a batch at once."""

    @property
    def corpus(self) -> Corpus:
        """The tokens."""
        ...

    def __len__(self) -> int:
        """Number of rows, R."""
        ...

    def __getitem__(self, indices: np.ndarray) -> Batch:
        """The batch of the rows ``[B]``; -1 is a row of padding."""
        ...

    @property
    def starts(self) -> np.ndarray:
        """``[R]`` int64, index in the corpus of each row's first token."""
        ...

    @property
    def tokens(self) -> np.ndarray:
        """``[R]`` int64, tokens of each row without padding."""
        ...

    @property
    def sort_widths(self) -> np.ndarray | None:
        """``[R]`` tokens of each row, if rows of similar length should share batches; else None."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the rows, besides the corpus and the context."""
        ...

    def padding_share(self, table: np.ndarray) -> float:
        """Share of padding in the batches ``[batches, B]``, not counting rows that only fill the last one."""
        ...


@dataclass(frozen=True)
class RowDataset:
    """Rows of documents: ``dataset[indices]`` is a ``TokenBatch``."""

    corpus: Corpus
    """The tokens"""
    rows: Rows
    """Which tokens are in which row"""
    token_bytes: np.ndarray
    """``[V]`` int32, UTF-8 bytes of each token of the vocabulary"""
    pad_id: int
    """Padding token"""
    width: int
    """Tokens of the longest row"""
    fixed_width: bool
    """Whether every batch is ``width`` wide; otherwise it is as wide as its longest row, rounded up so that the network
    reads a multiple of 8 tokens"""
    block_diagonal: bool
    """Whether batches have positions and documents, so that attention stays within a document"""

    def __len__(self) -> int:
        """Number of rows, R."""
        return len(self.rows)

    @property
    def starts(self) -> np.ndarray:
        """``[R]`` int64, index in the corpus of each row's first token."""
        return self.rows.starts[self.rows.offsets[:-1]]

    @cached_property
    def tokens(self) -> np.ndarray:
        """``[R]`` int64, tokens of each row."""
        return self.rows.widths

    @property
    def sort_widths(self) -> np.ndarray | None:
        """``[R]`` tokens of each row; None if all batches have the same width."""
        return None if self.fixed_width else self.tokens

    @property
    def identity(self) -> dict[str, Any]:
        """Tokens in all rows, and whether attention stays within a document."""
        return {"tokens": int(self.rows.lengths.sum()), "block_diagonal": self.block_diagonal}

    def padding_share(self, table: np.ndarray) -> float:
        """Share of padding in the batches ``[batches, B]``."""
        return padding_share(self.tokens, self._width(batch_widths(self.tokens, table)), table)

    def _width(self, longest: np.ndarray) -> np.ndarray:
        return np.full_like(longest, self.width) if self.fixed_width else padded_width(longest, self.width)

    def __getitem__(self, indices: np.ndarray) -> TokenBatch:
        """Lay out rows.

        The first token of a span is no target: it would be predicted from another document or row.

        Args:
            indices: ``[B]`` indices of rows; -1 is a row of padding.

        Returns:
            TokenBatch: ``[B, T]``.
        """
        first = np.where(indices >= 0, self.rows.offsets[indices], 0)
        count = np.where(indices >= 0, self.rows.offsets[indices + 1] - first, 0)
        spans = ranges(first, count)
        starts, lengths = self.rows.starts[spans], self.rows.lengths[spans]
        number = ranges(np.zeros_like(count), count)  # index of the span in its row
        row = np.repeat(np.arange(len(indices)), count)
        filled = np.bincount(row, lengths, len(indices)).astype(np.int64)
        width = int(self._width(filled.max()))
        # The spans of a row are adjacent, so a span begins where all earlier ones end, minus the rows before its own.
        column = np.cumsum(lengths) - lengths - (np.cumsum(filled) - filled)[row]

        source = ranges(starts, lengths)
        target = ranges(row * width + column, lengths)
        within = ranges(np.zeros_like(lengths), lengths)
        counts = within > 0
        if self.corpus.target_mask is not None:
            counts &= self.corpus.target_mask[source]
        shape = (len(indices), width)
        ids = scatter(shape, target, self.corpus.ids[source], fill=self.pad_id)
        mask = scatter(shape, target, counts, fill=False)
        num_bytes = (self.token_bytes[ids] * mask).sum(axis=1, dtype=np.int64)
        return TokenBatch(
            ids=torch.from_numpy(ids),
            mask=torch.from_numpy(mask),
            positions=torch.from_numpy(scatter(shape, target, within, fill=0)) if self.block_diagonal else None,
            documents=torch.from_numpy(scatter(shape, target, np.repeat(number, lengths), fill=-1))
            if self.block_diagonal
            else None,
            num_bytes=torch.from_numpy(num_bytes),
        )


def padded_width(longest: np.ndarray, most: int) -> np.ndarray:
    """Width of batches: 8 k + 1 tokens, as the network reads all but the last, but no more than the widest row.

    Args:
        longest: tokens of the longest row of each batch, of any shape.
        most: tokens of the widest row allowed.
    """
    return np.minimum(np.maximum(1, -(-(longest - 1) // 8)) * 8 + 1, most)


def batch_widths(widths: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Tokens of the longest row of each batch.

    Args:
        widths: ``[R]`` tokens of each row.
        table: ``[batches, B]`` indices of rows, -1 for padding.
    """
    return np.where(table >= 0, widths[table], 0).max(axis=1)


def padding_share(tokens: np.ndarray, widths: np.ndarray, table: np.ndarray) -> float:
    """Share of padding in batches, not counting rows that only fill the last one.

    Args:
        tokens: ``[R]`` tokens of each row.
        widths: ``[batches]`` width of each batch, tokens.
        table: ``[batches, B]`` indices of rows, -1 for padding.
    """
    used = table >= 0
    return 1 - float(tokens[table][used].sum() / (widths * used.sum(axis=1)).sum())


def scatter(shape: tuple[int, int], target: np.ndarray, values: np.ndarray, *, fill: int) -> np.ndarray:
    """A bool or int64 array of ``fill``, with ``values`` at the flat indices ``target``."""
    out = np.full(shape, fill, dtype=bool if values.dtype == bool else np.int64)
    out.reshape(-1)[target] = values
    return out


@dataclass(frozen=True)
class RecordDataset:
    """Records of a corpus, each with ``parts`` documents and a prompt."""

    corpus: Corpus
    """The tokens and prompts"""
    records: range
    """Indices of the records in the corpus"""
    pad_id: int
    """Padding token"""
    width: int
    """Tokens of the longest row allowed"""

    parts = 1

    def __len__(self) -> int:
        """Number of rows, R."""
        return len(self.records)

    @cached_property
    def lengths(self) -> np.ndarray:
        """``[R, parts]`` int64, tokens of each document."""
        return np.diff(self.corpus.offsets[self._first : self._first + len(self) * self.parts + 1]).reshape(
            -1, self.parts
        )

    @property
    def starts(self) -> np.ndarray:
        """``[R]`` int64, index in the corpus of each record's first token."""
        return self._spans(np.arange(len(self)))[0][:, 0]

    @cached_property
    def tokens(self) -> np.ndarray:
        """``[R]`` int64, tokens that the batches have of each record."""
        tokens: np.ndarray = self.lengths.sum(axis=1)
        return tokens

    @property
    def identity(self) -> dict[str, Any]:
        """Which records of the corpus these are."""
        return {"first": self.records.start, "records": len(self)}

    @property
    def _first(self) -> int:
        return self.records.start * self.parts

    def _spans(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Start in the corpus and length of each document of the records: ``[B, parts]`` int64 each."""
        starts = self.corpus.offsets[self._first + indices[:, None] * self.parts + np.arange(self.parts)]
        return starts, np.where(indices[:, None] >= 0, self.lengths[indices], 0)

    def _prompts(self, indices: np.ndarray) -> tuple[tuple[Prompt, ...], tuple[Columns, ...]]:
        """Prompts and columns of the records."""
        first = self.records.start
        found = [self.corpus.prompt(first + index) if index >= 0 else ("", {}) for index in indices.tolist()]
        return tuple(prompt for prompt, _ in found), tuple(columns for _, columns in found)

    @cached_property
    def prompt_numbers(self) -> np.ndarray:
        """``[R]`` int64, the same number for records whose prompts have the same tokens; in order of appearance."""
        starts, lengths = self._spans(np.arange(len(self)))
        numbers: dict[bytes, int] = {}
        spans = zip(starts[:, 0].tolist(), lengths[:, 0].tolist(), strict=True)
        prompts = (self.corpus.ids[start : start + length].tobytes() for start, length in spans)
        return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])


class ResponseDataset(RecordDataset):
    """Records whose first document is a prompt, and of which a batch has two rows each: a prompt and a response."""

    @property
    def sort_widths(self) -> np.ndarray:
        """``[R]`` tokens of each record's longer row."""
        widths: np.ndarray = self.lengths[:, 0] + self.response_lengths.max(axis=1, initial=0)
        return widths

    @property
    def response_lengths(self) -> np.ndarray:
        """``[R, 2]`` int64, tokens of both responses."""
        raise NotImplementedError

    @cached_property
    def tokens(self) -> np.ndarray:
        """``[R]`` int64, tokens of both rows."""
        filled = self.response_lengths > 0
        tokens: np.ndarray = (self.response_lengths + filled * self.lengths[:, :1]).sum(axis=1)
        return tokens

    def padding_share(self, table: np.ndarray) -> float:
        """Share of padding in the batches ``[batches, B]``."""
        widths = padded_width(batch_widths(self.sort_widths, table), self.width)
        return padding_share(self.tokens, 2 * widths, table)

    def _lay_out(self, starts: np.ndarray, lengths: np.ndarray) -> ResponseRows:
        """Rows of a prompt and a response.

        Args:
            starts: ``[B, 3]`` int64, first token in the corpus of each prompt and of its two responses.
            lengths: ``[B, 3]`` int64, their tokens; a response of 0 leaves its row empty.

        Returns:
            ResponseRows: ``[2B, T]``, prompts with their first responses, then with their second ones.
        """
        firsts, responses = starts[:, 1:].T.ravel(), lengths[:, 1:].T.ravel()
        prompts = np.where(responses > 0, np.tile(lengths[:, 0], 2), 0)
        filled = prompts + responses
        width = int(padded_width(filled.max(), self.width))
        row = np.arange(len(filled)) * width
        source = np.concatenate([ranges(np.tile(starts[:, 0], 2), prompts), ranges(firsts, responses)])
        target = np.concatenate([ranges(row, prompts), ranges(row + prompts, responses)])
        ids = scatter((len(filled), width), target, self.corpus.ids[source], fill=self.pad_id)
        column = np.arange(width)
        mask = (column >= prompts[:, None]) & (column < filled[:, None])
        return ResponseRows(*map(torch.from_numpy, (ids, mask, filled, prompts)))


class PairDataset(ResponseDataset):
    """Preference pairs, each stored as three documents: prompt, chosen, rejected."""

    parts = 3

    @property
    def response_lengths(self) -> np.ndarray:
        """``[R, 2]`` int64, tokens of the chosen and the rejected response."""
        return self.lengths[:, 1:]

    def __getitem__(self, indices: np.ndarray) -> PairBatch:
        """Lay out pairs.

        Args:
            indices: ``[B]`` indices of pairs; -1 is two rows of padding.

        Returns:
            PairBatch: ``[2B, T]``; T - 1 is a multiple of 8, or T is the longest row allowed.
        """
        starts, lengths = self._spans(indices)
        rows = self._lay_out(starts, lengths)
        texts, columns = self._prompts(indices)
        return PairBatch(
            ids=rows.ids,
            mask=rows.mask,
            lengths=rows.lengths,
            prompt_lengths=torch.from_numpy(lengths[:, 0].copy()),
            numbers=torch.from_numpy(indices.astype(np.int64)),
            prompts=texts,
            columns=columns,
        )


class FeedbackDataset(ResponseDataset):
    """Responses with feedback, each stored as two documents, prompt and response, and a label.

    A record's second row is its mismatched response, that of a counterpart with another prompt.
    """

    parts = 2

    @cached_property
    def counterparts(self) -> np.ndarray:
        """``[R]`` int64, the record whose response each prompt is mismatched with; -1: none has another prompt.

        Records with the same prompt are brought together, in order of appearance, and the responses are rotated by the
        size of the largest group. So every response is used once, and has another prompt, unless more than half of
        the records share one.
        """
        order = np.argsort(self.prompt_numbers, kind="stable")
        rotated = np.empty_like(order)
        rotated[order] = np.roll(order, np.bincount(self.prompt_numbers).max())
        return np.where(self.prompt_numbers[rotated] == self.prompt_numbers, -1, rotated)

    @property
    def response_lengths(self) -> np.ndarray:
        """``[R, 2]`` int64, tokens of the labelled response, and of what fits of the mismatched one."""
        return np.column_stack([self.lengths[:, 1], self._mismatched(np.arange(len(self)))[1]])

    @property
    def labels(self) -> np.ndarray:
        """``[R]`` bool, whether each response is desirable."""
        assert self.corpus.labels is not None
        return self.corpus.labels[self.records.start : self.records.stop]

    def __getitem__(self, indices: np.ndarray) -> FeedbackBatch:
        """Lay out responses.

        Args:
            indices: ``[B]`` indices of records; -1 is two rows of padding.

        Returns:
            FeedbackBatch: ``[2B, T]``; T - 1 is a multiple of 8, or T is the longest row allowed.
        """
        starts, lengths = self._spans(indices)
        others, tokens = self._mismatched(indices)
        rows = self._lay_out(np.column_stack([starts, others]), np.column_stack([lengths, tokens]))
        texts, columns = self._prompts(indices)
        return FeedbackBatch(
            ids=rows.ids,
            mask=rows.mask,
            lengths=rows.lengths,
            prompt_lengths=torch.from_numpy(lengths[:, 0].copy()),
            numbers=torch.from_numpy(indices.astype(np.int64)),
            prompts=texts,
            columns=columns,
            desirable=torch.from_numpy((indices >= 0) & self.labels[indices]),
        )

    def _mismatched(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First token in the corpus, and length, of the mismatched response to each prompt: ``[B]`` int64 each.

        The end of one that does not fit beside the prompt is left out.
        """
        counterparts = np.where(indices >= 0, self.counterparts[indices], -1)
        starts, lengths = self._spans(counterparts)
        return starts[:, 1], np.minimum(lengths[:, 1], self.width - self.lengths[indices, 0])


@dataclass(frozen=True)
class PromptGroups:
    """All records of a prompt as one item, so that they share a batch (Ouyang et al. 2022, section 3.5)."""

    records: PairDataset | FeedbackDataset
    """Pairs, or responses with feedback, with those of one prompt next to each other"""

    @property
    def corpus(self) -> Corpus:
        """The tokens and prompts."""
        return self.records.corpus

    def __len__(self) -> int:
        """Number of prompts; one that recurs later counts again."""
        return len(self.first) - 1

    @cached_property
    def first(self) -> np.ndarray:
        """``[prompts + 1]`` int64, index of the first record of each prompt, and the number of records."""
        begins = np.flatnonzero(np.diff(self.records.prompt_numbers, prepend=-1))
        return np.append(begins, len(self.records))

    @property
    def starts(self) -> np.ndarray:
        """``[prompts]`` int64, index in the corpus of the first token of each prompt's first record."""
        return self.records.starts[self.first[:-1]]

    @cached_property
    def tokens(self) -> np.ndarray:
        """``[prompts]`` int64, tokens of all rows of each prompt's records."""
        tokens: np.ndarray = np.add.reduceat(self.records.tokens, self.first[:-1])
        return tokens

    @property
    def sort_widths(self) -> np.ndarray:
        """``[prompts]`` tokens of each prompt's longest row."""
        widths: np.ndarray = np.maximum.reduceat(self.records.sort_widths, self.first[:-1])
        return widths

    @property
    def identity(self) -> dict[str, Any]:
        """Which records these are, and that they are grouped by prompt."""
        return self.records.identity | {"by_prompt": True}

    def padding_share(self, table: np.ndarray) -> float:
        """Share of padding in the batches ``[batches, prompts]``."""
        rows = np.where(table >= 0, 2 * np.diff(self.first)[table], 0).sum(axis=1)
        numel = rows * padded_width(batch_widths(self.sort_widths, table), self.records.width)
        return 1 - float(self.tokens[table[table >= 0]].sum() / numel.sum())

    def __getitem__(self, indices: np.ndarray) -> PairBatch | FeedbackBatch:
        """Lay out all records of prompts.

        Args:
            indices: indices of prompts; -1 adds nothing, or one record of padding if there is nothing else.

        Returns:
            PairBatch | FeedbackBatch: all records of these prompts.
        """
        prompts = indices[indices >= 0]
        records = ranges(self.first[prompts], np.diff(self.first)[prompts])
        return self.records[records if len(records) else np.array([-1])]


class PromptDataset(RecordDataset):
    """Prompts, each stored as a document."""

    @property
    def sort_widths(self) -> None:
        """None, so that every batch is a fair sample of long and short prompts."""
        return

    def padding_share(self, table: np.ndarray) -> float:
        """Share of padding in the batches ``[batches, B]``."""
        return padding_share(self.tokens, batch_widths(self.tokens, table), table)

    def __getitem__(self, indices: np.ndarray) -> PromptBatch:
        """Lay out prompts.

        Args:
            indices: ``[B]`` indices of prompts; -1 is a row of padding.

        Returns:
            PromptBatch: ``[B, P]``.
        """
        starts, lengths = (part[:, 0] for part in self._spans(indices))
        width = max(1, int(lengths.max()))
        target = ranges(np.arange(len(indices)) * width, lengths)
        ids = scatter((len(indices), width), target, self.corpus.ids[ranges(starts, lengths)], fill=self.pad_id)
        texts, columns = self._prompts(indices)
        return PromptBatch(
            ids=torch.from_numpy(ids),
            lengths=torch.from_numpy(lengths.copy()),
            numbers=torch.from_numpy(indices.astype(np.int64)),
            prompts=texts,
            columns=columns,
        )
