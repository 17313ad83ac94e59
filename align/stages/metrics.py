"""Metrics of language models and of reward models: sums, added over ranks, divided once."""

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


class PairScores(Metric):
    """How a reward model orders pairs, and how sure it is, over everything since the last reset."""

    full_state_update = False
    bins = 10
    """Of confidence between 0.5 and 1, for the calibration error"""
    wide = 0.2
    """By how much gold must differ for a pair to count as widely apart"""
    sums: torch.Tensor
    counts: torch.Tensor
    in_bin: torch.Tensor

    def __init__(self) -> None:
        """Start from nothing."""
        super().__init__()
        # loss, correct, margin, score, score squared; then correct by gold, and the same of wide pairs
        self.add_state("sums", torch.zeros(7, dtype=torch.float64), dist_reduce_fx="sum")
        # pairs, pairs untied in gold, pairs wide in gold
        self.add_state("counts", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        # pairs, correct, confidence of each bin
        self.add_state("in_bin", torch.zeros(3, self.bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, chosen: torch.Tensor, rejected: torch.Tensor, loss: torch.Tensor, gold: torch.Tensor | None = None
    ) -> None:
        """Add pairs.

        Args:
            chosen: ``[B]`` scores of the preferred responses.
            rejected: ``[B]`` scores of the others.
            loss: ``[B]`` nats.
            gold: ``[B]`` float64, by how much chosen is better in truth; None where nobody knows.
        """
        margin = chosen.double() - rejected.double()
        correct = ordered(margin)
        scores = torch.cat((chosen, rejected)).double()
        parts = [loss.double(), correct, margin, scores, scores.square()]
        # Whoever orders the pairs, the network is sure of its own order with at least 0.5.
        confidence = margin.abs().sigmoid()
        number = ((confidence - 0.5) * 2 * self.bins).long().clamp(max=self.bins - 1)
        self.in_bin.index_add_(1, number, torch.stack((torch.ones_like(correct), correct, confidence)))
        self.counts[0] += len(margin)
        if gold is not None:
            for place, least in enumerate((0.0, self.wide), 1):
                told = gold.abs() > least + 1e-9  # 0.9 - 0.7 is a little above 0.2
                self.counts[place] += told.sum()
                parts.append(ordered(margin * gold.sign())[told])
        self.sums[: len(parts)] += torch.stack([part.sum() for part in parts])

    def compute(self) -> dict[str, torch.Tensor]:
        """Values since the last reset.

        Returns:
            dict: ``loss`` nats per pair; ``accuracy``, share of pairs ordered as labelled, a tie counting half;
            ``margin``, mean lead of chosen; ``ece``, expected calibration error: mean distance of confidence from
            the share of correct pairs, over bins of confidence; ``score_mean`` and ``score_std`` of all responses;
            where gold was given ``gold_agreement``, share of pairs untied in gold that are ordered as it does, and
            ``gold_agreement_wide``, the same where gold differs by more than ``wide``.
        """
        pairs, untied, apart = self.counts
        loss, correct, margin, score, squared, agreed, agreed_wide = self.sums
        mean = score / (2 * pairs)
        values = {
            "loss": loss / pairs,
            "accuracy": correct / pairs,
            "margin": margin / pairs,
            "ece": (self.in_bin[1] - self.in_bin[2]).abs().sum() / pairs,
            "score_mean": mean,
            "score_std": (squared / (2 * pairs) - mean.square()).clamp(min=0).sqrt(),
        }
        if untied:
            values["gold_agreement"] = agreed / untied
        if apart:
            values["gold_agreement_wide"] = agreed_wide / apart
        return {name: value.float() for name, value in values.items()}


def ordered(margin: torch.Tensor) -> torch.Tensor:
    """1 where the margin is positive, 0.5 where it is 0, else 0: float64 of ``margin``'s shape."""
    return 0.5 * (1 + margin.double().sign())
