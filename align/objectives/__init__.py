"""Losses and estimators as pure functions on tensors: no config, no ``self``, no logging, no Lightning."""

from align.objectives.cross_entropy import NextTokenLoss, linear_cross_entropy, next_token_loss, row_nll

__all__ = ["NextTokenLoss", "linear_cross_entropy", "next_token_loss", "row_nll"]
