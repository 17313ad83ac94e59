"""Sampling: from logits to tokens to texts."""
