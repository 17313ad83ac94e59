"""Adapters on a network: LoRA and merging."""
