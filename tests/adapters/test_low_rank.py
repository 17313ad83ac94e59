"""A linear layer with one adapter as a single operation, against peft's own."""

import peft
import pytest
import torch

from align.adapters.lora import LoraConfig, add_adapter, convert_base, lora_layers, use_adapter
from align.adapters.low_rank import low_rank_linear
from align.model.config import GPTConfig
from align.model.gpt import GPT

CONFIG = GPTConfig(vocab_size=11, layers=1, heads=2, width=8, ff_width=24, context=8, bias=True)


def adapted(**settings) -> GPT:
    """A network whose adapter changes something."""
    network = GPT(CONFIG)
    add_adapter(network, LoraConfig(rank=3, **settings))
    for _, layer in lora_layers(network):
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    return network


def single(network: GPT, dtype: torch.dtype = torch.float32) -> list[bool]:
    """Whether each layer computes inputs of a dtype as a single operation."""
    return [layer._single_adapter(torch.zeros(1, dtype=dtype)) is not None for _, layer in lora_layers(network)]


def test_two_numbers_by_hand():
    """x = (1, 2), W = (3, 4), bias 5, A = (6, 7), B = 8, scale 0.5: 3 + 8 + 5 + 0.5 x 8 x (6 + 14) = 96.

    d/dx = W + 0.5 B A = (27, 32), d/dA = 0.5 B x = (4, 8), d/dB = 0.5 A x = 10.
    """
    x, weight, bias = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[3.0, 4.0]]), torch.tensor([5.0])
    a, b = torch.tensor([[6.0, 7.0]], requires_grad=True), torch.tensor([[8.0]], requires_grad=True)
    out = low_rank_linear(x, weight, bias, a, b, scale=0.5)
    assert out.tolist() == [[96.0]]
    out.sum().backward()
    assert x.grad.tolist() == [[27.0, 32.0]]
    assert a.grad.tolist() == [[4.0, 8.0]]
    assert b.grad.tolist() == [[10.0]]


def test_values_and_gradients_are_pefts():
    """In float64: sums of at most 24 products of order 1 differ by less than 1e-12."""
    network = adapted().double()
    assert all(single(network, torch.float64))
    for _, layer in lora_layers(network):
        x = torch.randn(2, 5, layer.in_features, dtype=torch.float64, requires_grad=True)
        found = {}
        for kind, forward in (("ours", type(layer).forward), ("peft", peft.tuners.lora.Linear.forward)):
            layer.zero_grad()
            x.grad = None
            out = forward(layer, x)
            out.square().sum().backward()
            a, b = layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
            found[kind] = [out.detach(), x.grad.clone(), a.clone(), b.clone()]
        for ours, theirs in zip(found["ours"], found["peft"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-10)


def test_the_first_block_gives_its_input_no_gradient():
    network = adapted()
    network.hidden(torch.tensor([[1, 2, 3]])).sum().backward()
    assert network.model.embed_tokens.weight.grad is None
    assert all(layer.lora_A["default"].weight.grad is not None for _, layer in lora_layers(network))


@pytest.mark.parametrize("changes", [{"dropout": 0.1}, {"dora": True}, {"base_dtype": "bfloat16"}])
def test_peft_computes_what_is_not_a_plain_adapter(changes):
    network = adapted(**changes)
    convert_base(network, LoraConfig(**changes).dtype)
    assert not any(single(network))


def test_peft_computes_disabled_and_merged_adapters_and_autocast():
    network = adapted()
    assert all(single(network))
    with torch.autocast("cpu", torch.bfloat16):
        assert not any(single(network))
    use_adapter(network, None)
    assert not any(single(network))


def test_no_tokens():
    network = adapted()
    states = network.hidden(torch.tensor([[1, 2]]), indices=torch.zeros(0, dtype=torch.int64))
    assert states.shape == (0, CONFIG.width)
    states.sum().backward()
