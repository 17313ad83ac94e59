"""Log-likelihoods of continuations: against whole forward passes, and the sharing of beginnings by hand."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.generation import likelihood
from align.generation.likelihood import Continuation, _owners, likelihoods
from align.model.config import GPTConfig
from align.model.gpt import GPT

CONTEXT = 12


@pytest.fixture(scope="module")
def network() -> GPT:
    torch.manual_seed(0)
    network = GPT(GPTConfig(vocab_size=23, layers=2, heads=2, width=16, ff_width=16, context=CONTEXT))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return network.double().eval()


@torch.no_grad()
def alone(network: GPT, request: Continuation) -> tuple[float, bool]:
    ids = torch.tensor([[*request.context, *request.ids][-CONTEXT - 1 :]])
    table = network(ids[:, :-1])[0, -len(request.ids) :].log_softmax(-1)
    targets = torch.tensor(request.ids)
    return float(table[range(len(targets)), targets].sum()), bool((table.argmax(-1) == targets).all())


def answers(network: GPT, requests: list[Continuation]) -> list[likelihood.Likelihood]:
    found = dict(likelihoods(network, requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[number] for number in range(len(requests))]


ids = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.builds(Continuation, ids, ids), min_size=1, max_size=12), st.sampled_from([1, 20, 2048]))
def test_likelihoods_are_those_of_rows_alone(network: GPT, requests, tokens) -> None:
    """Ids from a tiny alphabet, so that beginnings and whole rows coincide often; also too long for the context."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(likelihood._PACKED_TOKENS, "cpu", tokens)
        found = answers(network, requests)
    for request, got in zip(requests, found, strict=True):
        expected, greedy = alone(network, request)
        assert got.logprob == pytest.approx(expected, rel=1e-9)
        assert got.greedy == greedy


def test_a_greedy_continuation_is_marked(network: GPT) -> None:
    context, ids = [3, 1], []
    with torch.no_grad():
        for _ in range(4):
            ids.append(int(network(torch.tensor([context + ids]))[0, -1].argmax()))
    worse = [*ids[:-1], (ids[-1] + 1) % 23]
    assert [of.greedy for of in answers(network, [Continuation(context, ids), Continuation(context, worse)])] == [
        True,
        False,
    ]


def test_owners_by_hand() -> None:
    """Two questions of five tokens after the same three, with two endings of two each.

    Sharing within a question costs 7 + 2 + 7 + 2 = 18 tokens. One owner for all: 7 + 2 + 4 + 4 = 17.
    """
    start = (1, 2, 3)
    rows = [(*start, 4, 5, a, b) for a, b in ((6, 7), (7, 8))] + [(*start, 5, 6, a, b) for a, b in ((6, 7), (7, 8))]
    assert _owners(rows) == ([0, 0, 0, 0], [0, 5, 3, 3])
    # Without common examples each question is its own owner.
    other = [rows[0], rows[1], (9, *rows[2][1:]), (9, *rows[3][1:])]
    assert _owners(other) == ([0, 0, 2, 2], [0, 5, 0, 5])


def test_sharing_computes_few_tokens(network: GPT, monkeypatch) -> None:
    """Four one-token endings of one context are one row, whose own last token is not read."""
    read: list[int] = []
    hidden = network.hidden
    monkeypatch.setattr(network, "hidden", lambda ids, **rest: read.append(ids.numel()) or hidden(ids, **rest))
    answers(network, [Continuation([1, 2, 3, 4, 5], [end]) for end in range(4)])
    assert read == [5]


@pytest.mark.parametrize(
    ("request_", "found"), [(([], [1]), "context"), (([1], []), "continuation"), (([1], [1] * 13), "13")]
)
def test_requests_without_an_answer_are_refused(network: GPT, request_, found) -> None:
    rng = random.Random(0)
    good = Continuation([rng.randrange(20)], [1])
    with pytest.raises(ValueError, match=f"request 1 .*{found}" if found != "13" else "13 tokens"):
        list(likelihoods(network, [good, Continuation(*request_)]))
