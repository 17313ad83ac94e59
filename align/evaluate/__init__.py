"""Evaluation: what a model can do, and what alignment cost."""
