"""Batches that data modules produce and stages consume.

Legend: B rows (pairs, prompts, responses with feedback) of a batch, R rows of prompt and response, T tokens of a row, P
tokens of the longest prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

Messages = Sequence[Mapping[str, Any]]
"""Of a chat, each with ``role`` and ``content``"""


class TokenBatch(NamedTuple):
    """Rows of tokens and which of them count in the loss.

    A row of T tokens makes T - 1 predictions: the stage passes ``ids[:, :-1]`` to the network, and the objective reads
    the targets ``ids[:, 1:]`` and their mask ``mask[:, 1:]``.

    Attributes:
        ids: ``[B, T]`` int64, right-padded.
        mask: ``[B, T]`` bool, True where the token is a target. ``mask[:, 0]`` is never read.
        positions: ``[B, T]`` int64, position of the token in its document; None means ``0..T-1`` in every row.
        documents: ``[B, T]`` int64, index of the token's document in its row, -1 on padding. Attention stays within a
            document. None means causal attention over the whole row.
        num_bytes: ``[B]`` int64, UTF-8 bytes of the targets, for bits per byte.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor | None
    documents: torch.Tensor | None
    num_bytes: torch.Tensor


class ResponseRows(NamedTuple):
    """Rows of a prompt and a response each.

    Attributes:
        ids: ``[R, T]`` int64, prompt and response, right-padded.
        mask: ``[R, T]`` bool, True on the response and the end of its turn.
        lengths: ``[R]`` int64, tokens of each row without padding; 0 for a row of padding.
        prompt_lengths: ``[R]`` int64, tokens of each prompt.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    lengths: torch.Tensor
    prompt_lengths: torch.Tensor


class PairBatch(NamedTuple):
    """Preference pairs: row b of the first half has the chosen response to prompt b, row b of the second the rejected.

    Attributes:
        ids: ``[2B, T]`` int64, prompt and response, right-padded: B rows of chosen, then B of rejected.
        mask: ``[2B, T]`` bool, True on the response and the end of its turn.
        lengths: ``[2B]`` int64, tokens of each row without padding; 0 for rows that only fill the last batch.
        prompt_lengths: ``[B]`` int64, tokens of each prompt, the same in both halves.
        numbers: ``[B]`` int64, index of the pair in its split, -1 for padding.
        prompts: B prompts, texts or messages, for rewards; an empty text for padding.
        columns: B records, each with the columns that the run's rewards and judges read; empty for padding.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    lengths: torch.Tensor
    prompt_lengths: torch.Tensor
    numbers: torch.Tensor
    prompts: tuple[str | Messages, ...]
    columns: tuple[Mapping[str, Any], ...]

    @property
    def rows(self) -> ResponseRows:
        """All 2B rows."""
        return _two_each(self)


class FeedbackBatch(NamedTuple):
    """Responses that are labelled desirable or not, one to each prompt, and mismatched ones for KTO's reference point.

    Row b of the first half has the labelled response to prompt b, row b of the second half the response of a record
    with another prompt.

    Attributes:
        ids: ``[2B, T]`` int64, prompt and response, right-padded: B rows that are labelled, then B mismatched.
        mask: ``[2B, T]`` bool, True on the response and the end of its turn.
        lengths: ``[2B]`` int64, tokens of each row without padding; 0 for rows that only fill the last batch, and for
            mismatched rows of a record that has no counterpart.
        prompt_lengths: ``[B]`` int64, tokens of each prompt, the same in both halves.
        numbers: ``[B]`` int64, index of the record in its split, -1 for padding.
        prompts: B prompts, texts or messages, for rewards; an empty text for padding.
        columns: B records, each with the columns that the run's judges read; empty for padding.
        desirable: ``[B]`` bool, the label; False for padding.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    lengths: torch.Tensor
    prompt_lengths: torch.Tensor
    numbers: torch.Tensor
    prompts: tuple[str | Messages, ...]
    columns: tuple[Mapping[str, Any], ...]
    desirable: torch.Tensor

    @property
    def rows(self) -> ResponseRows:
        """All 2B rows."""
        return _two_each(self)

    @property
    def labelled(self) -> ResponseRows:
        """The B rows of labelled responses."""
        return ResponseRows(*(part[: len(self.numbers)] for part in self.rows))

    @property
    def mismatched(self) -> ResponseRows:
        """The B rows of mismatched responses."""
        return ResponseRows(*(part[len(self.numbers) :] for part in self.rows))


def _two_each(batch: PairBatch | FeedbackBatch) -> ResponseRows:
    # A row of padding has no prompt either.
    return ResponseRows(batch.ids, batch.mask, batch.lengths, batch.prompt_lengths.repeat(2).minimum(batch.lengths))


class PromptBatch(NamedTuple):
    """Prompts to respond to.

    Attributes:
        ids: ``[B, P]`` int64, rendered up to the assistant's turn, right-padded.
        lengths: ``[B]`` int64, tokens of each prompt; 0 for rows that only fill the last batch.
        numbers: ``[B]`` int64, index of the prompt in its split, -1 for padding.
        prompts: B prompts, texts or messages, for rewards; an empty text for padding.
        columns: B records, each with the columns that the run's rewards and judges read; empty for padding.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    numbers: torch.Tensor
    prompts: tuple[str | Messages, ...]
    columns: tuple[Mapping[str, Any], ...]
