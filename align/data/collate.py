"""Datasets whose item is a whole batch: an array of indices to a batch, with one gather over the corpus.

Legend: B rows (pairs, prompts) of a batch, R rows (pairs, prompts) of a split, T tokens of a row, P tokens of the
longest prompt.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from align.batches import PairBatch, PromptBatch, TokenBatch
from align.data.corpus import Corpus
from align.data.rows import Rows, ranges
from align.tokenizer.prompts import Prompt

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

    def _prompts(self, indices: np.ndarray) -> tuple[Prompt, ...]:
        first = self.records.start
        return tuple(self.corpus.prompt(first + index) if index >= 0 else "" for index in indices.tolist())


class PairDataset(RecordDataset):
    """Preference pairs, each stored as three documents: prompt, chosen, rejected."""

    parts = 3

    @cached_property
    def tokens(self) -> np.ndarray:
        """``[R]`` int64, tokens of both rows of each pair."""
        tokens: np.ndarray = self.lengths @ np.array([2, 1, 1])
        return tokens

    @property
    def sort_widths(self) -> np.ndarray:
        """``[R]`` tokens of each pair's longer row."""
        widths: np.ndarray = self.lengths[:, 0] + self.lengths[:, 1:].max(axis=1, initial=0)
        return widths

    def padding_share(self, table: np.ndarray) -> float:
        """Share of padding in the batches ``[batches, B]``."""
        widths = padded_width(batch_widths(self.sort_widths, table), self.width)
        return padding_share(self.tokens, 2 * widths, table)

    def __getitem__(self, indices: np.ndarray) -> PairBatch:
        """Lay out pairs.

        Args:
            indices: ``[B]`` indices of pairs; -1 is two rows of padding.

        Returns:
            PairBatch: ``[2B, T]``; T - 1 is a multiple of 8, or T is the longest row allowed.
        """
        starts, lengths = self._spans(indices)
        prompts = np.tile(lengths[:, 0], 2)
        responses = lengths[:, 1:].T.ravel()
        filled = prompts + responses
        width = int(padded_width(filled.max(), self.width))
        row = np.arange(len(filled)) * width
        source = np.concatenate([ranges(np.tile(starts[:, 0], 2), prompts), ranges(starts[:, 1:].T.ravel(), responses)])
        target = np.concatenate([ranges(row, prompts), ranges(row + prompts, responses)])
        ids = scatter((len(filled), width), target, self.corpus.ids[source], fill=self.pad_id)
        column = np.arange(width)
        mask = (column >= prompts[:, None]) & (column < filled[:, None])
        return PairBatch(
            ids=torch.from_numpy(ids),
            mask=torch.from_numpy(mask),
            lengths=torch.from_numpy(filled),
            prompt_lengths=torch.from_numpy(lengths[:, 0].copy()),
            numbers=torch.from_numpy(indices.astype(np.int64)),
            prompts=self._prompts(indices),
        )


@dataclass(frozen=True)
class PromptGroups:
    """All pairs of a prompt as one item, so that they share a batch (Ouyang et al. 2022, section 3.5)."""

    pairs: PairDataset
    """Pairs, with those of one prompt next to each other"""

    @property
    def corpus(self) -> Corpus:
        """The tokens and prompts."""
        return self.pairs.corpus

    def __len__(self) -> int:
        """Number of prompts; one that recurs later counts again."""
        return len(self.first) - 1

    @cached_property
    def first(self) -> np.ndarray:
        """``[prompts + 1]`` int64, index of the first pair of each prompt, and the number of pairs."""
        starts, lengths = self.pairs._spans(np.arange(len(self.pairs)))
        prompts = [
            self.pairs.corpus.ids[start : start + length].tobytes()
            for start, length in zip(starts[:, 0].tolist(), lengths[:, 0].tolist(), strict=True)
        ]
        begins = [row for row, prompt in enumerate(prompts) if row == 0 or prompt != prompts[row - 1]]
        return np.array([*begins, len(prompts)])

    @property
    def starts(self) -> np.ndarray:
        """``[prompts]`` int64, index in the corpus of the first token of each prompt's first pair."""
        return self.pairs.starts[self.first[:-1]]

    @cached_property
    def tokens(self) -> np.ndarray:
        """``[prompts]`` int64, tokens of all rows of each prompt's pairs."""
        tokens: np.ndarray = np.add.reduceat(self.pairs.tokens, self.first[:-1])
        return tokens

    @property
    def sort_widths(self) -> np.ndarray:
        """``[prompts]`` tokens of each prompt's longest row."""
        widths: np.ndarray = np.maximum.reduceat(self.pairs.sort_widths, self.first[:-1])
        return widths

    @property
    def identity(self) -> dict[str, Any]:
        """Which pairs these are, and that they are grouped by prompt."""
        return self.pairs.identity | {"by_prompt": True}

    def padding_share(self, table: np.ndarray) -> float:
        """Share of padding in the batches ``[batches, prompts]``."""
        rows = np.where(table >= 0, 2 * np.diff(self.first)[table], 0).sum(axis=1)
        numel = rows * padded_width(batch_widths(self.sort_widths, table), self.pairs.width)
        return 1 - float(self.tokens[table[table >= 0]].sum() / numel.sum())

    def __getitem__(self, indices: np.ndarray) -> PairBatch:
        """Lay out all pairs of prompts.

        Args:
            indices: indices of prompts; -1 adds nothing, or one pair of padding if there is nothing else.

        Returns:
            PairBatch: all pairs of these prompts.
        """
        prompts = indices[indices >= 0]
        pairs = ranges(self.first[prompts], np.diff(self.first)[prompts])
        return self.pairs[pairs if len(pairs) else np.array([-1])]


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
        return PromptBatch(
            ids=torch.from_numpy(ids),
            lengths=torch.from_numpy(lengths.copy()),
            numbers=torch.from_numpy(indices.astype(np.int64)),
            prompts=self._prompts(indices),
        )
