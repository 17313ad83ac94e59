"""How the losses of tokens become the loss of an optimizer step: a weighted sum, over a count.

Both are added over the micro-batches and ranks of the step before one is divided by the other, so the average does not
depend on how the step is split. L is the number of tokens of a response, B the number of responses of the step.

====================  ============================  ======================================================
average               sum over tokens               every token counts
====================  ============================  ======================================================
``TokenMean``         / tokens of the step          the same within a step; DAPO (Yu et al. 2025, equation 8)
``ResponseMean``      each / L, then / B            less in a long response; GRPO (Shao et al. 2024, equation 3)
``ConstantLength``    / (B x max_new_tokens)        the same in every step; Dr. GRPO (Liu et al. 2025, section 3.2)
====================  ============================  ======================================================
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


class Average(ABC):
    """Base of the averages over the tokens of responses."""

    def weights(self, lengths: torch.Tensor) -> torch.Tensor:
        """Weight of each token in the sum.

        Args:
            lengths: ``[R]`` int64, tokens of each response.

        Returns:
            ``[M]`` float32, one for each token of all responses, concatenated.
        """
        return torch.ones(int(lengths.sum()), device=lengths.device)

    @abstractmethod
    def count(self, lengths: torch.Tensor, longest: int) -> torch.Tensor:
        """What the sum is divided by.

        Args:
            lengths: ``[R]`` int64, tokens of each response.
            longest: the most tokens that a response may have.

        Returns:
            ``[]`` int64.
        """


@dataclass(frozen=True)
class TokenMean(Average):
    """The mean over all tokens of the step."""

    def count(self, lengths: torch.Tensor, longest: int) -> torch.Tensor:
        """Tokens."""
        return lengths.sum()


@dataclass(frozen=True)
class ResponseMean(Average):
    """The mean over responses of the mean over each one's tokens."""

    def weights(self, lengths: torch.Tensor) -> torch.Tensor:
        """1 / L of its response, for each token."""
        return (1 / lengths.float()).repeat_interleave(lengths)

    def count(self, lengths: torch.Tensor, longest: int) -> torch.Tensor:
        """Responses."""
        return torch.tensor(len(lengths), device=lengths.device)


@dataclass(frozen=True)
class ConstantLength(Average):
    """The sum over tokens, as if each response had the most tokens that it may have."""

    def count(self, lengths: torch.Tensor, longest: int) -> torch.Tensor:
        """Responses times the most tokens of one."""
        return torch.tensor(len(lengths) * longest, device=lengths.device)
