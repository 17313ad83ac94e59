"""A source whose entropy is known: the loss must come down to it, and cannot go below it, whatever the seed."""

import math

import pytest
import torch
from test_language_model import Batches, fit

from align.algorithms.pretrain import Pretrain
from align.batches import TokenBatch
from align.model.config import GPTConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig

STAY = 0.7
SYMBOLS = 8
ENTROPY = -(STAY * math.log(STAY) + (1 - STAY) * math.log((1 - STAY) / (SYMBOLS - 1)))
"""Nats per symbol of a chain that stays with probability 0.7 and else goes to any other symbol alike: 1.19."""


def chain(rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """``[rows, length]`` symbols of the chain."""
    ids = [torch.randint(SYMBOLS, (rows,), generator=generator)]
    for _ in range(length - 1):
        jump = 1 + torch.randint(SYMBOLS - 1, (rows,), generator=generator)
        stay = torch.rand(rows, generator=generator) < STAY
        ids.append(torch.where(stay, ids[-1], (ids[-1] + jump) % SYMBOLS))
    return torch.stack(ids, 1)


def batch(rows: int, generator: torch.Generator) -> TokenBatch:
    ids = chain(rows, 33, generator)
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), None, None, torch.full((rows,), 32))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_comes_down_to_the_entropy(seed: int):
    """400 steps of 512 fresh symbols; 16,000 held-out ones, whose own mean nll has a standard error of 0.008."""
    generator = torch.Generator().manual_seed(seed)
    config = GPTConfig(vocab_size=SYMBOLS, layers=1, heads=2, width=32, context=32)
    schedule = ScheduleConfig(warmup_steps=20, final_factor=0.0)
    stage = Pretrain(config, init_seed=seed, optimizer=OptimizerConfig(lr=5e-3), schedule=schedule)
    data = Batches([batch(16, generator) for _ in range(400)], [batch(500, generator)])
    trainer = fit(stage, data, limit_val_batches=1.0)
    loss = trainer.callback_metrics["val/loss"].item()
    assert ENTROPY - 0.025 < loss < ENTROPY + 0.04
