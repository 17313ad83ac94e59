"""Inputs of matrix products that the backward pass computes again."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.rebuilding import _inside_checkpoint, checkpointed, rebuilding, swiglu

CONFIG = GPTConfig(vocab_size=11, layers=2, heads=2, width=8, ff_width=24, context=8)


def gradients(network: GPT) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    network.zero_grad()
    network.hidden(ids, indices=torch.tensor([1, 6])).square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "config",
    [CONFIG, replace(CONFIG, feed_forward="gelu", norm="layernorm", bias=True), replace(CONFIG, norm_placement="post")],
    ids=["swiglu", "gelu", "post"],
)
def test_gradients_are_those_of_stored_inputs(config, monkeypatch):
    network = GPT(config)
    found = gradients(network)
    monkeypatch.setattr("align.model.layers.after_norm", lambda norm, module, x, *args: module(norm(x), *args))
    monkeypatch.setattr("align.model.layers.swiglu", lambda gate, up: F.silu(gate) * up)
    token = _inside_checkpoint.set(True)
    expected = gradients(network)
    _inside_checkpoint.reset(token)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_swiglu_has_autograds_gradient():
    gate, up = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.equal(swiglu(gate, up), F.silu(gate) * up)
    assert torch.autograd.gradcheck(swiglu, (gate, up))


def test_only_the_named_tensor_is_computed_again():
    x, weight = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    doubled, calls = x * 2, []

    def compute() -> torch.Tensor:
        calls.append(1)
        return x * 2

    with rebuilding(doubled, compute):
        out = F.linear(doubled, weight)
    assert not calls
    out.sum().backward()
    assert calls == [1]
    assert weight.grad.tolist() == [[4.0] * 3] * 4


def test_nothing_is_computed_again_in_a_checkpoint():
    x, weight = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)

    def part(x: torch.Tensor) -> torch.Tensor:
        with rebuilding(x, lambda: pytest.fail("computed again")):
            return F.linear(x, weight)

    checkpointed(part)(x).sum().backward()
