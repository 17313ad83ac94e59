"""Rows without padding, and beginnings that several rows have in common computed once.

Matrices see every different token once, in one long line; only attention sees rows. So a prompt with two answers costs
the prompt once, rows of different length cost what they hold, and attention stays plainly causal, with no mask.

Legend: R rows, T tokens of the longest row, N tokens of the line, H heads, E width of one head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class SharedRows:
    """Where the tokens of a line stand in rows; made by ``share_prefixes``. A place is ``row * width + column``."""

    rows: int
    """R"""
    width: int
    """T"""
    token_at: torch.Tensor
    """``[R * T]`` int64, the token in each place of the rows; any on padding"""
    place_of: torch.Tensor
    """``[N]`` int64, the first place of each token"""
    copied: torch.Tensor
    """Int64, the token of each further place"""
    copied_to: torch.Tensor
    """Int64, those further places"""

    def line(self, padded: torch.Tensor) -> torch.Tensor:
        """The line ``[1, N]`` of ids ``[R, T']``, T' at least T."""
        return padded[:, : self.width].reshape(-1)[self.place_of][None]

    @property
    def positions(self) -> torch.Tensor:
        """``[1, N]`` int64, the place of each token in its row."""
        return (self.place_of % self.width)[None]

    def tokens_at(self, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """The tokens of the line in some places of the rows; int64 of any shape."""
        return self.token_at[row * self.width + column]

    def attending(self, attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """``attend`` of rows, for the queries, keys and values ``[1, H, N, E]`` of a line."""

        def attend_rows(
            queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, mask: None, dropout: float
        ) -> torch.Tensor:
            mixed = attend(*(self._spread(heads) for heads in (queries, keys, values)), mask=mask, dropout=dropout)
            line = _Collect.apply(mixed.transpose(1, 2).flatten(0, 1), self.place_of)
            return line[None].transpose(1, 2)

        return attend_rows

    def _spread(self, heads: torch.Tensor) -> torch.Tensor:
        """``[1, H, N, E]`` to ``[R, H, T, E]``."""
        line = heads.transpose(1, 2)[0]
        spread = _Spread.apply(line, self.token_at, self.place_of, self.copied, self.copied_to)
        return spread.unflatten(0, (self.rows, self.width)).transpose(1, 2)


def share_prefixes(lengths: torch.Tensor, prefixes: torch.Tensor, owners: torch.Tensor) -> SharedRows:
    """Lay out rows of which some begin alike.

    Args:
        lengths: ``[R]`` int64, tokens of each row; 0 for a row of padding.
        prefixes: ``[R]`` int64, how many tokens at its beginning a row has in common with its owner; not read where a
            row is its own owner.
        owners: ``[R]`` int64, the row that a row begins like; its own number where with none. An owner is its own
            owner, and at least as long as the prefix.

    Returns:
        SharedRows: the line holds each row's own tokens, row after row.
    """
    rows, width = len(lengths), max(1, int(lengths.max()))
    number, column = torch.arange(rows, device=lengths.device)[:, None], torch.arange(width, device=lengths.device)
    real = column < lengths[:, None]
    copy = real & (owners[:, None] != number) & (column < prefixes[:, None])
    own = real & ~copy
    own[0, 0] = True  # a batch of nothing but padding still has a token
    place_of = own.flatten().nonzero()[:, 0]
    token_at = torch.zeros(rows * width, dtype=torch.int64, device=lengths.device)
    token_at[place_of] = torch.arange(len(place_of), device=lengths.device)
    copied_to = copy.flatten().nonzero()[:, 0]
    copied = token_at[(owners[:, None] * width + column)[copy]]
    token_at[copied_to] = copied
    return SharedRows(rows, width, token_at, place_of, copied, copied_to)


class DistinctRows(NamedTuple):
    """Rows of which none comes twice, laid out with the prompts of neighbours computed once.

    Attributes:
        ids: ``[R', T]`` int64, the different rows, in order.
        lengths: ``[R']`` int64, tokens of each.
        place: ``[R]`` int64, where each of the given rows is among the different ones.
        rows: their layout.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    place: torch.Tensor
    rows: SharedRows


def share_answers(ids: torch.Tensor, lengths: torch.Tensor, prompt_lengths: torch.Tensor) -> DistinctRows:
    """Lay out answers: one that comes several times is computed once, and so is each prompt and what follows alike.

    Args:
        ids: ``[R, T]`` int64, right-padded.
        lengths: ``[R]`` int64, tokens of each row that are to be computed, at most T.
        prompt_lengths: ``[R]`` int64, tokens of each row's prompt.
    """
    keys = torch.cat([ids, lengths[:, None], prompt_lengths[:, None]], dim=1)
    # Sorted, so that rows with one prompt follow each other.
    distinct, place = keys.unique(dim=0, return_inverse=True)
    distinct, lengths, prompt_lengths = distinct[:, :-2], distinct[:, -2], distinct[:, -1]
    number = torch.arange(len(distinct), device=ids.device)
    alike = (distinct[1:] == distinct[:-1]).cumprod(1).sum(1).minimum(lengths[:-1])
    begins = torch.cat([alike.new_ones(1, dtype=torch.bool), alike < prompt_lengths[1:].clamp(min=1)])
    owners = torch.where(begins, number, 0).cummax(0).values
    common = (distinct == distinct[owners]).cumprod(1).sum(1).minimum(lengths).minimum(lengths[owners])
    return DistinctRows(distinct, lengths, place, share_prefixes(lengths, common, owners))


class _Spread(torch.autograd.Function):
    """From the line to rows; the gradient is a look-up, and a sum only for the few tokens that have further places."""

    @staticmethod
    def forward(
        ctx: Any,
        line: torch.Tensor,
        token_at: torch.Tensor,
        place_of: torch.Tensor,
        copied: torch.Tensor,
        copied_to: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(place_of, copied, copied_to)
        return line.index_select(0, token_at)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        place_of, copied, copied_to = ctx.saved_tensors
        line = grad.index_select(0, place_of).index_add_(0, copied, grad.index_select(0, copied_to))
        return line, None, None, None, None


class _Collect(torch.autograd.Function):
    """From rows back to the line: the first place of each token is read, all copies of it hold the same."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, place_of: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(place_of)
        ctx.places = len(padded)
        return padded.index_select(0, place_of)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (place_of,) = ctx.saved_tensors
        return grad.new_zeros(ctx.places, *grad.shape[1:]).index_copy_(0, place_of, grad), None
