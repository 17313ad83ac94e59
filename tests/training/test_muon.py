"""Muon beside AdamW: each updates its own parameters exactly as torch's would alone, and resumes in the same bits."""

import copy

import pytest
import torch
from naming import naming
from torch import nn

from align.adapters.lora import LoraConfig
from align.algorithms.sft import SFT
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.training.muon import block_matrices
from align.training.optimization import OptimizerConfig, ScheduleConfig, build_optimizer

CONFIG = GPTConfig(vocab_size=11, layers=2, heads=2, width=8, ff_width=16, context=8, tied_embeddings=False)
SETTINGS = OptimizerConfig(lr=0.02, weight_decay=0.1, matrices="muon", momentum=0.9)


def network(seed=0):
    made = GPT(CONFIG)
    made.initialise(seed)
    return made


def ours(of, config=SETTINGS):
    return build_optimizer(of.parameters(), config, blocks=block_matrices(of))


def step(of, optimizer, number):
    ids = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(number))
    loss = nn.functional.cross_entropy(of(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_muon_updates_the_matrices_of_the_blocks_alone():
    names = {name for name, p in network().named_parameters() if any(p is q for q in block_matrices(network()))}
    assert not names  # of another network
    made = network()
    chosen = {id(p) for p in block_matrices(made)}
    names = {name for name, p in made.named_parameters() if id(p) in chosen}
    assert len(names) == 2 * 7
    assert all(name.startswith("model.layers.") and name.endswith("_proj.weight") for name in names)


def test_each_part_equals_torchs_optimizer_alone():
    both, apart = network(), network()
    optimizer = ours(both)
    matrices = block_matrices(apart)
    chosen = {id(p) for p in matrices}
    rest = [p for p in apart.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": [p for p in rest if p.ndim == 2]}]
    groups.append({"params": [p for p in rest if p.ndim < 2], "weight_decay": 0})
    adamw = torch.optim.AdamW(groups, lr=0.02, weight_decay=0.1, betas=SETTINGS.betas, eps=SETTINGS.eps, fused=True)
    for number in range(4):
        step(both, optimizer, number)
        ids = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(number))
        nn.functional.cross_entropy(apart(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        for alone in (muon, adamw):
            alone.step()
            alone.zero_grad()
    for one, other in zip(both.parameters(), apart.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_update_has_the_size_of_adamws():
    """Root mean square 0.2 lr whatever the shape, where singular values are about 1: within a factor of 1.5."""
    weight = nn.Parameter(torch.zeros(16, 64))
    weight.grad = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    config = OptimizerConfig(lr=1.0, weight_decay=0.0, matrices="muon")
    build_optimizer([weight], config, blocks=[weight]).step()
    assert 0.2 / 1.5 < weight.detach().square().mean().sqrt().item() < 0.2 * 1.5


def test_state_round_trip_continues_in_the_same_bits():
    whole = network()
    optimizer = ours(whole)
    for number in range(2):
        step(whole, optimizer, number)
    again = copy.deepcopy(whole)
    resumed = ours(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in range(2, 5):
        step(whole, optimizer, number)
        step(again, resumed, number)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    state = optimizer.state[whole.model.layers[0].mlp.up_proj.weight]
    assert set(state) == {"momentum_buffer"}


def test_a_group_that_is_added_goes_to_its_optimizer():
    made, value = network(), network(1)
    optimizer = ours(made)
    for group in ours(value).param_groups:
        optimizer.add_param_group(group)
    before = copy.deepcopy(value.state_dict())
    for p in (*made.parameters(), *value.parameters()):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in value.named_parameters())


def test_a_checkpoint_of_adamw_is_refused():
    made = network()
    plain = build_optimizer(made.parameters(), OptimizerConfig(lr=0.1))
    with pytest.raises(ValueError, match=naming("optimizer.matrices", "muon")):
        ours(made).load_state_dict(plain.state_dict())


def test_adapters_are_refused():
    stage = SFT(network=network(), lora=LoraConfig(rank=2), optimizer=SETTINGS, schedule=ScheduleConfig())
    stage.configure_model()
    with pytest.raises(ValueError, match=naming("optimizer.matrices", "muon")):
        stage.build_optimizer()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"matrices": "sgd"}, naming("optimizer.matrices", "sgd")),
        ({"momentum": 1.0}, naming("optimizer.momentum", 1.0)),
        ({"matrices": "muon", "state_bits": 8}, naming("optimizer.matrices", "optimizer.state_bits", 8)),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(lr=0.1, **settings)
