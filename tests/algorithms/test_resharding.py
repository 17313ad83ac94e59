"""The optimizer of a sharded checkpoint, in a process that is not sharded."""

import copy

import pytest
import torch
from torch import nn

from align.training.strategy import index_optimizer_state, name_optimizer_state


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(2, 1)})


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    """Matrices decay, vectors do not, and the second layer learns twice as fast."""
    a, b = module["a"], module["b"]
    groups = [{"params": [a.weight], "weight_decay": 0.5}, {"params": [a.bias]}, {"params": []}]
    return torch.optim.AdamW([*groups, {"params": [b.weight, b.bias], "lr": 2e-3}], lr=1e-3, weight_decay=0.0)


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int):
    for n in range(count):
        optimizer.zero_grad()
        module["b"](module["a"](torch.full((4, 3), n + 1.0))).square().sum().backward()
        optimizer.step()


def named(state, names):
    """As a sharded checkpoint has it: names, and a group for each parameter, the last ones first."""
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "params": [names[n]]}
        for group in state["param_groups"]
        for n in group["params"]
    ]
    return {"state": {names[n]: s for n, s in state["state"].items()}, "param_groups": groups[::-1]}


def test_training_goes_on_to_the_same_bits():
    module = network()
    optimizer = optimizer_of(module)
    steps(module, optimizer, 3)
    names = {0: "a.weight", 1: "a.bias", 2: "b.weight", 3: "b.bias"}
    stored = named(copy.deepcopy(optimizer.state_dict()), names)
    other = copy.deepcopy(module)
    resumed = optimizer_of(other)
    found = index_optimizer_state(stored, resumed, {p: name for name, p in other.named_parameters()})
    assert found["param_groups"][3]["params"] == [2, 3]
    resumed.load_state_dict(found)
    steps(module, optimizer, 2)
    steps(other, resumed, 2)
    assert all(torch.equal(one, two) for one, two in zip(module.parameters(), other.parameters(), strict=True))


def test_numbers_stay_as_they_are():
    module = network()
    state = optimizer_of(module).state_dict()
    assert index_optimizer_state(state, optimizer_of(module), {}) == state


def test_names_are_given_and_taken_back():
    module = network()
    optimizer = optimizer_of(module)
    steps(module, optimizer, 1)
    state, called = optimizer.state_dict(), {p: name for name, p in module.named_parameters()}
    found = name_optimizer_state(state, optimizer, called)
    assert [group["params"] for group in found["param_groups"]] == [
        ["a.weight"],
        ["a.bias"],
        [],
        ["b.weight", "b.bias"],
    ]
    assert found["state"]["b.bias"] is state["state"][3]
    assert index_optimizer_state(found, optimizer, called) == state
    with pytest.raises(ValueError, match=r"optimizer.*\b4\b.*\b2\b"):
        name_optimizer_state(state, torch.optim.AdamW(module["a"].parameters()), called)


def test_another_networks_state_is_refused():
    module = network()
    optimizer = optimizer_of(module)
    steps(module, optimizer, 1)
    stored = named(optimizer.state_dict(), {0: "a.weight", 1: "a.bias", 2: "c.weight", 3: "b.bias"})
    with pytest.raises(ValueError, match=r"optimizer.*\bb\.weight\b"):
        index_optimizer_state(stored, optimizer, {p: name for name, p in module.named_parameters()})
