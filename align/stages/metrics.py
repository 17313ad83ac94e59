"""Metrics of a language model, weighted by tokens and summed over ranks."""

import math

import torch
from torchmetrics import Metric


class TokenLoss(Metric):
    """Loss per token, perplexity and bits per byte over everything since the last reset.

    Sums are kept, never means of means: a batch counts by its tokens, and ranks are added before dividing.
    """

    full_state_update = False
    nll: torch.Tensor
    tokens: torch.Tensor
    bytes: torch.Tensor

    def __init__(self) -> None:
        """Start from nothing."""
        super().__init__()
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: torch.Tensor, tokens: torch.Tensor, num_bytes: torch.Tensor) -> None:
        """Add a batch.

        Args:
            nll: ``[]`` summed negative log-likelihood, nats.
            tokens: ``[]`` int64 targets that counted.
            num_bytes: ``[B]`` int64 UTF-8 bytes of those targets per row.
        """
        self.nll += nll
        self.tokens += tokens
        self.bytes += num_bytes.sum()

    def compute(self) -> dict[str, torch.Tensor]:
        """Values since the last reset.

        Returns:
            dict: ``loss`` nats per token, ``perplexity`` exp(loss), ``bits_per_byte`` nats / (ln 2 x bytes).
        """
        loss = self.nll / self.tokens
        bits_per_byte = self.nll / (math.log(2) * self.bytes)
        return {"loss": loss.float(), "perplexity": loss.exp().float(), "bits_per_byte": bits_per_byte.float()}
