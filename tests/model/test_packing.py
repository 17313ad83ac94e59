"""Shared prefixes give the values and gradients of separate rows, for every kind of network."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from network_options import STYLES

from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.kv_cache import KVCache
from align.model.layers import RMSNorm
from align.model.packing import share_prefixes

SHAPE = {"vocab_size": 13, "layers": 2, "heads": 4, "width": 32, "ff_width": 16, "context": 12}


@pytest.fixture(autouse=True)
def exact_norms(monkeypatch):
    monkeypatch.setattr(RMSNorm, "exact", True)


def network(dtype: torch.dtype, **settings) -> GPT:
    net = GPT(GPTConfig(**SHAPE | settings)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return net


def make_rows(prompts, answers, seed=0):
    """Rows of B prompts with their responses, response 0 of each prompt first: ids, lengths, prefixes, owners."""
    generator = torch.Generator().manual_seed(seed)
    heads = [torch.randint(13, (n,), generator=generator).tolist() for n in prompts]
    rows, prefixes, owners = [], [], []
    for k in range(len(answers[0])):
        for b, head in enumerate(heads):
            rows.append(head + torch.randint(13, (answers[b][k],), generator=generator).tolist())
            prefixes.append(len(head))
            owners.append(b)
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([len(row) for row in rows]), torch.tensor(prefixes), torch.tensor(owners)


def both_ways(net, ids, lengths, prefixes, owners):
    """Hidden states of all real tokens, and gradients of a scalar of them: padded, and packed."""
    rows = share_prefixes(lengths, prefixes, owners)
    row, column = (torch.arange(ids.shape[1]) < lengths[:, None]).nonzero(as_tuple=True)
    weight = torch.randn(len(row), net.config.width, generator=torch.Generator().manual_seed(2)).to(
        net.output_weight.dtype
    )
    out = []
    for hidden in (
        lambda: net.hidden(ids)[row, column],
        lambda: net.hidden(rows.line(ids), rows=rows)[0, rows.tokens_at(row, column)],
    ):
        net.zero_grad()
        states = hidden()
        (states * weight).sum().backward()
        out.append([states.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
def test_same_numbers_and_gradients(dtype, tolerance, style, reference):
    net = network(dtype, **STYLES[style])
    net.model.reference_attention = reference
    padded, line = both_ways(net, *make_rows([3, 5, 1], [[4, 2], [1, 6], [7, 7]]))
    assert len(padded) == len(line) > 5
    for a, b in zip(padded, line, strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * max(1.0, float(a.abs().max())))


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).flatmap(
        lambda prompts: st.tuples(
            st.just(prompts),
            st.integers(1, 3).flatmap(
                lambda k: st.lists(
                    st.lists(st.integers(1, 6), min_size=k, max_size=k), min_size=len(prompts), max_size=len(prompts)
                )
            ),
        )
    ),
    st.integers(0, 99),
)
def test_any_number_of_answers(case, seed):
    """One to three responses per prompt; each distinct token is in the packed sequence exactly once."""
    prompts, answers = case
    net = network(torch.float64)
    rows = make_rows(prompts, answers, seed)
    padded, line = both_ways(net, *rows)
    for a, b in zip(padded, line, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    shared = share_prefixes(*rows[1:])
    assert len(shared.position_of) == sum(prompts) + sum(itertools.chain(*answers))


@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
@pytest.mark.parametrize("style", STYLES)
def test_selected_states_are_those_of_all(style, reference):
    """For rows, packed sequences and with a cache: values and gradients, also for a token selected twice."""
    net = network(torch.float64, **STYLES[style])
    net.model.reference_attention = reference
    ids, *layout = make_rows([3, 5, 1], [[4, 2], [1, 6], [7, 7]])
    shared = share_prefixes(*layout)
    cache = KVCache(net.config, len(ids), 12, dtype=torch.float64)
    cases = [(ids, {}), (shared.line(ids), {"rows": shared})]
    with torch.no_grad():
        some = net.hidden(ids, positions=torch.arange(ids.shape[1]), cache=cache, indices=torch.tensor([4, 9]))
    torch.testing.assert_close(some, net.hidden(ids).flatten(0, 1)[[4, 9]].detach(), rtol=1e-10, atol=1e-10)
    for read, settings in cases:
        indices = torch.tensor([7, 0, 11, 7])
        found = []
        for states in (
            net.hidden(read, **settings).flatten(0, 1)[indices],
            net.hidden(read, **settings, indices=indices),
        ):
            gradients = torch.autograd.grad((states**3).sum(), list(net.parameters()), allow_unused=True)
            found.append([states.detach(), *(gradient for gradient in gradients if gradient is not None)])
        for every, some in zip(*found, strict=True):
            torch.testing.assert_close(some, every, rtol=1e-10, atol=1e-10)


def test_the_line_by_hand():
    """Prompt 5 6 with responses 7 and 8 9: the packed sequence is 5 6 7 8 9, at positions 0 1 2 2 3."""
    rows = share_prefixes(torch.tensor([3, 4]), torch.tensor([2, 2]), torch.tensor([0, 0]))
    assert rows.line(torch.tensor([[5, 6, 7, 0], [5, 6, 8, 9]])).tolist() == [[5, 6, 7, 8, 9]]
    assert rows.positions.tolist() == [[0, 1, 2, 2, 3]]
    assert rows.tokens_at(torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 2, 3])).tolist() == [
        0, 1, 2, 0, 1, 3, 4,
    ]  # fmt: skip


def test_padding_is_not_computed_and_changes_nothing():
    """Empty rows and padding add nothing to the packed sequence; an empty batch still has a token."""
    ids, lengths, prefixes, owners = make_rows([3], [[2, 4]])
    some = share_prefixes(lengths, prefixes, owners)
    none = torch.zeros(1, dtype=torch.int64)
    padded = share_prefixes(torch.cat([lengths, none]), torch.cat([prefixes, none]), torch.cat([owners, none + 2]))
    assert padded.line(torch.cat([ids, ids[:1]])).tolist() == some.line(ids).tolist()
    empty = share_prefixes(none, none, none)
    assert network(torch.float32).hidden(empty.line(ids[:1]), rows=empty).shape == (1, 1, 32)


def test_the_context_holds_for_rows_not_for_the_line():
    """Three rows of 12 tokens pack into 36 in a context of 12; rows of 13 are refused."""
    net, alone = network(torch.float32), torch.arange(3)
    ids = torch.zeros(3, 13, dtype=torch.int64)
    rows = share_prefixes(torch.full((3,), 12), torch.zeros(3), alone)
    assert net.hidden(rows.line(ids), rows=rows).shape == (1, 36, 32)
    rows = share_prefixes(torch.full((3,), 13), torch.zeros(3), alone)
    with pytest.raises(ValueError, match=r"\b13\b.*\b12\b"):
        net.hidden(rows.line(ids), rows=rows)
    rows = share_prefixes(torch.full((3,), 12), torch.zeros(3), alone)
    with pytest.raises(ValueError, match="positions"):
        net.hidden(rows.line(ids), rows=rows, positions=rows.positions)
