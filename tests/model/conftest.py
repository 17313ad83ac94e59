"""Small networks whose every parameter matters, in float64 so that equal means equal."""

import pytest
import torch

from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.layers import RMSNorm


@pytest.fixture
def exact_norms(monkeypatch):
    """Float64 norms in float64: by default they are taken in float32, as transformers takes them."""
    monkeypatch.setattr(RMSNorm, "exact", True)


@pytest.fixture
def network_of(exact_norms):
    """Build a float64 network in evaluation mode, with norms and biases away from 1 and 0 and attention that looks."""

    def build(**settings):
        sizes = {"vocab_size": 61, "layers": 2, "heads": 4, "width": 32, "ff_width": 24, "context": 48}
        network = GPT(GPTConfig(**sizes | {"init_std": 0.3, "embedding_std": 0.5} | settings)).double().eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
        return network

    return build


@pytest.fixture
def tokens():
    """Draw token ids of the given shape below 61."""

    def draw(*shape, seed=0):
        return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(seed))

    return draw
