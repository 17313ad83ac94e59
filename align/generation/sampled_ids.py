"""The ids that can be sampled: rows of a network's output matrix that are tokens of its tokenizer.

Legend: V rows of the output matrix, K ids that can be sampled.
"""

from dataclasses import dataclass

import torch

from align.tokenizer import Tokenizer


@dataclass(frozen=True)
class SampledIds:
    """All ids below ``limit`` but the missing ones.

    Many published models have more rows than their tokenizer has ids, as padding (Qwen2.5-0.5B: 151,936 and 151,665),
    and a few tokenizers have gaps between their ids. Such a row has no text, so it is never sampled, and log-probs that
    are compared with the sampler's leave it out of the softmax. Without gaps every method returns a view.
    """

    limit: int | None = None
    """Ids of the tokenizer; None: every row is an id"""
    missing: tuple[int, ...] = ()
    """Ids below ``limit`` that are no tokens"""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SampledIds":
        """Those of a tokenizer."""
        return cls(tokenizer.vocab_size, tokenizer.missing_ids)

    def count(self, rows: int) -> int:
        """The number of rows up to the last id, of a network with so many ``rows``."""
        return rows if self.limit is None else min(self.limit, rows)

    def rows(self, matrix: torch.Tensor) -> torch.Tensor:
        """The rows of an output matrix that can be sampled: ``[K, D]`` of ``[V, D]``."""
        if not self.missing:
            return matrix[: self.count(len(matrix))]
        return matrix[self._kept(len(matrix), matrix.device)]

    def columns(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of ids that can be sampled: ``[N, K]`` of ``[N, V]``."""
        return self.rows(logits.T).T

    def indices(self, ids: torch.Tensor, rows: int) -> torch.Tensor:
        """The index of each id among ``rows``, for a network with so many; the ids must be such as can be sampled."""
        return torch.searchsorted(self._kept(rows, ids.device), ids) if self.missing else ids

    def without_missing(self, logits: torch.Tensor) -> torch.Tensor:
        """``logits`` ``[B, V]`` up to the last id, with minus infinity for missing ids, so that columns remain ids."""
        count = self.count(logits.shape[1])
        logits = logits[:, :count]
        if not self.missing:
            return logits
        gaps = torch.ones(count, dtype=torch.bool, device=logits.device)
        gaps[self._kept(count, logits.device)] = False
        return logits.masked_fill(gaps, -torch.inf)

    def _kept(self, rows: int, device: torch.device) -> torch.Tensor:
        """The ids that can be sampled, in order."""
        kept = torch.ones(self.count(rows), dtype=torch.bool)
        kept[[number for number in self.missing if number < len(kept)]] = False
        return kept.nonzero()[:, 0].to(device)
