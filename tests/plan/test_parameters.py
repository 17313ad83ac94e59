"""Parameters by part, against published counts."""

import pytest
from planned_jobs import GPT2, LLAMA3_8B, TINY

from align.adapters.lora import LoraConfig, add_adapter
from align.model.gpt import GPT, ScalarGPT
from align.plan.parameters import adapter_weights, by_part, count, weights_of


def test_gpt2_has_124_439_808_parameters():
    """By hand, from D = 768, V = 50257, T = 1024, F = 3072, L = 12, biases everywhere, two affine norms of a block.

    Embeddings (V + T) D = 39,383,808; attention L (4 D^2 + 4 D) = 28,348,416; feed-forward L (2 D F + F + D) =
    56,669,184; norms (2 L + 1) 2 D = 38,400.
    """
    parts = by_part(weights_of(GPT2))
    assert parts == {
        "embeddings": 39_383_808,
        "attention": 28_348_416,
        "feed_forward": 56_669_184,
        "norms": 38_400,
    }
    assert count(weights_of(GPT2)) == sum(parts.values()) == 124_439_808


def test_llama_3_8b_has_8_030_261_248_parameters():
    assert count(weights_of(LLAMA3_8B)) == 8_030_261_248


@pytest.mark.parametrize("scalar", [False, True])
def test_counts_are_those_of_the_network(scalar):
    network = (ScalarGPT if scalar else GPT)(TINY)
    assert count(weights_of(TINY, scalar=scalar)) == network.num_parameters()


@pytest.mark.parametrize("lora", [LoraConfig(rank=3), LoraConfig(rank=2, targets=("q_proj", "down_proj"), dora=True)])
def test_adapters_are_those_that_are_added(lora):
    network = GPT(TINY)
    add_adapter(network, lora)
    assert count(adapter_weights(TINY, lora)) == sum(p.numel() for p in network.parameters() if p.requires_grad)
