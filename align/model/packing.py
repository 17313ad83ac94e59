"""Compute rows without padding, and prefixes that rows share only once.

Matrix products process one packed sequence with every distinct token; only attention processes rows. So a prompt with
two responses is computed once, rows cost no padding, and attention stays causal without a mask.

Legend: R rows, T tokens of the longest row, N tokens of the packed sequence, H heads, E width of one head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class SharedRows:
    """Maps a packed sequence to rows; made by ``share_prefixes``. Flat positions are ``row * width + column``."""

    rows: int
    """R"""
    width: int
    """T"""
    token_at: torch.Tensor
    """``[R * T]`` int64, the packed token at each flat position; arbitrary on padding"""
    position_of: torch.Tensor
    """``[N]`` int64, the first flat position of each packed token"""
    copied_tokens: torch.Tensor
    """Int64, the packed token at each further flat position"""
    copied_positions: torch.Tensor
    """Int64, those further flat positions"""

    def line(self, padded: torch.Tensor) -> torch.Tensor:
        """Pack ids ``[R, T']``, T' at least T, into a sequence ``[1, N]``."""
        return padded[:, : self.width].reshape(-1)[self.position_of][None]

    @property
    def positions(self) -> torch.Tensor:
        """``[1, N]`` int64, the position of each packed token in its row."""
        return (self.position_of % self.width)[None]

    def tokens_at(self, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """Indices in the packed sequence of some positions of the rows; int64 of any shape."""
        return self.token_at[row * self.width + column]

    def attending(self, attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """``attend`` over rows, for queries, keys and values ``[1, H, N, E]`` of a packed sequence, masks of rows."""

        def attend_rows(
            queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **settings: Any
        ) -> torch.Tensor:
            mixed = attend(*(self._unpack(heads) for heads in (queries, keys, values)), **settings)
            line = _Pack.apply(mixed.transpose(1, 2).flatten(0, 1), self.position_of)
            return line[None].transpose(1, 2)

        return attend_rows

    def _unpack(self, heads: torch.Tensor) -> torch.Tensor:
        """``[1, H, N, E]`` to ``[R, H, T, E]``."""
        line = heads.transpose(1, 2)[0]
        unpacked = _Unpack.apply(line, self.token_at, self.position_of, self.copied_tokens, self.copied_positions)
        return unpacked.unflatten(0, (self.rows, self.width)).transpose(1, 2)


def share_prefixes(lengths: torch.Tensor, prefixes: torch.Tensor, owners: torch.Tensor) -> SharedRows:
    """Lay out rows that share prefixes.

    Args:
        lengths: ``[R]`` int64, tokens of each row; 0 for a row of padding.
        prefixes: ``[R]`` int64, how many initial tokens a row shares with its owner; unused if it is its own owner.
        owners: ``[R]`` int64, the row that a row shares its prefix with; itself if with none. An owner is its own
            owner, and at least as long as the prefix.

    Returns:
        SharedRows: the packed sequence has each row's own tokens, row after row.
    """
    rows, width = len(lengths), max(1, int(lengths.max()))
    number, column = torch.arange(rows, device=lengths.device)[:, None], torch.arange(width, device=lengths.device)
    real = column < lengths[:, None]
    copy = real & (owners[:, None] != number) & (column < prefixes[:, None])
    own = real & ~copy
    own[0, 0] = True  # a batch of only padding still needs a token
    position_of = own.flatten().nonzero()[:, 0]
    token_at = torch.zeros(rows * width, dtype=torch.int64, device=lengths.device)
    token_at[position_of] = torch.arange(len(position_of), device=lengths.device)
    copied_positions = copy.flatten().nonzero()[:, 0]
    copied_tokens = token_at[(owners[:, None] * width + column)[copy]]
    token_at[copied_positions] = copied_tokens
    return SharedRows(rows, width, token_at, position_of, copied_tokens, copied_positions)


class DistinctRows(NamedTuple):
    """Distinct rows, laid out with the prompts of adjacent rows shared.

    Attributes:
        ids: ``[R', T]`` int64, the distinct rows, in order.
        lengths: ``[R']`` int64, tokens of each.
        row_of: ``[R]`` int64, the distinct row of each given row.
        rows: their layout.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    row_of: torch.Tensor
    rows: SharedRows


def share_responses(ids: torch.Tensor, lengths: torch.Tensor, prompt_lengths: torch.Tensor) -> DistinctRows:
    """Lay out responses so that equal ones, and shared prompts and prefixes, are computed once.

    Args:
        ids: ``[R, T]`` int64, right-padded.
        lengths: ``[R]`` int64, tokens of each row to compute, at most T.
        prompt_lengths: ``[R]`` int64, tokens of each row's prompt.
    """
    keys = torch.cat([ids, lengths[:, None], prompt_lengths[:, None]], dim=1)
    # Sorted, so that rows with the same prompt are adjacent.
    distinct, row_of = keys.unique(dim=0, return_inverse=True)
    distinct, lengths, prompt_lengths = distinct[:, :-2], distinct[:, -2], distinct[:, -1]
    number = torch.arange(len(distinct), device=ids.device)
    alike = (distinct[1:] == distinct[:-1]).cumprod(1).sum(1).minimum(lengths[:-1])
    begins = torch.cat([alike.new_ones(1, dtype=torch.bool), alike < prompt_lengths[1:].clamp(min=1)])
    owners = torch.where(begins, number, 0).cummax(0).values
    common = (distinct == distinct[owners]).cumprod(1).sum(1).minimum(lengths).minimum(lengths[owners])
    return DistinctRows(distinct, lengths, row_of, share_prefixes(lengths, common, owners))


class _Unpack(torch.autograd.Function):
    """From packed sequence to rows; the gradient is a lookup, and a sum only for tokens with several positions."""

    @staticmethod
    def forward(
        ctx: Any,
        line: torch.Tensor,
        token_at: torch.Tensor,
        position_of: torch.Tensor,
        copied_tokens: torch.Tensor,
        copied_positions: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(position_of, copied_tokens, copied_positions)
        return line.index_select(0, token_at)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        position_of, copied_tokens, copied_positions = ctx.saved_tensors
        line = grad.index_select(0, position_of).index_add_(0, copied_tokens, grad.index_select(0, copied_positions))
        return line, None, None, None, None


class _Pack(torch.autograd.Function):
    """From rows to packed sequence: reads the first position of each token, as all its copies are equal."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, position_of: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(position_of)
        ctx.positions = len(padded)
        return padded.index_select(0, position_of)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (position_of,) = ctx.saved_tensors
        return grad.new_zeros(ctx.positions, *grad.shape[1:]).index_copy_(0, position_of, grad), None
