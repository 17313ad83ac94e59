import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from align.objectives import logprobs as module
from align.objectives import response_logprobs, sequence_logprobs, token_logprobs, token_logprobs_and_entropy


def _random(n: int, width: int, vocab: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, width, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocab, width, generator=g, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(vocab, (n,), generator=g)


def _plain(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    softcap: float | None = None,
) -> torch.Tensor:
    logits = F.linear(hidden, weight)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.log_softmax(logits / temperature, -1).gather(1, targets[:, None])[:, 0]


def test_two_positions_by_hand():
    """Width 1, weights 0 and ln 4, hidden 1 and 0.

    At temperature 1 position 0 has p = (1/5, 4/5); at 2 the logits are (0, ln 2) and p = (1/3, 2/3). Position 1 is a
    fair coin at any temperature. The entropy of (1/5, 4/5) is ln 5 - 4/5 ln 4.
    """
    hidden, weight = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [math.log(4)]])
    targets = torch.tensor([1, 0])
    got, entropy = token_logprobs_and_entropy(hidden, weight, targets)
    assert got.tolist() == pytest.approx([math.log(4 / 5), math.log(1 / 2)])
    assert entropy.tolist() == pytest.approx([math.log(5) - 0.8 * math.log(4), math.log(2)])
    hot = token_logprobs(hidden, weight, targets, temperature=2.0)
    assert hot.tolist() == pytest.approx([math.log(2 / 3), math.log(1 / 2)])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 9),
    vocab=st.integers(2, 7),
    chunk=st.integers(1, 10),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    softcap=st.sampled_from([None, 0.7]),
    keep=st.sampled_from([0, 100, 2**20]),
    seed=st.integers(0, 99),
)
def test_value_and_gradients_equal_plain_torch(
    n: int, vocab: int, chunk: int, temperature: float, softcap: float | None, keep: int, seed: int
):
    """With all, some or none of the softmax kept for the backward pass."""
    hidden, weight, targets = _random(n, 3, vocab, seed)
    upstream = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "KEEP_BYTES", keep)
        ours = token_logprobs(hidden, weight, targets, temperature=temperature, softcap=softcap, chunk=chunk)
        ours_grad = torch.autograd.grad(ours, (hidden, weight), upstream)
    plain = _plain(hidden, weight, targets, temperature, softcap)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        ours_grad, torch.autograd.grad(plain, (hidden, weight), upstream), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("keep", [0, 2**20])
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, keep: int, with_entropy: bool, softcap: float | None):
    monkeypatch.setattr(module, "KEEP_BYTES", keep)
    hidden, weight, targets = _random(5, 3, 4)

    def run(h: torch.Tensor, w: torch.Tensor):
        settings = {"temperature": 0.7, "softcap": softcap, "chunk": 2}
        if with_entropy:
            return token_logprobs_and_entropy(h, w, targets, **settings, entropy_grad=True)
        return token_logprobs(h, w, targets, **settings)

    assert torch.autograd.gradcheck(run, (hidden, weight))


@pytest.mark.parametrize(("wants_hidden", "wants_weight"), [(True, False), (False, True)])
def test_a_frozen_side_has_no_gradient_and_changes_nothing_for_the_other(wants_hidden: bool, wants_weight: bool):
    hidden, weight, targets = _random(6, 3, 5)
    both = torch.autograd.grad(token_logprobs(hidden, weight, targets, chunk=4).sum(), (hidden, weight))
    h, w = hidden.detach().requires_grad_(wants_hidden), weight.detach().requires_grad_(wants_weight)
    token_logprobs(h, w, targets, chunk=4).sum().backward()
    for got, expected in ((h.grad, both[0]), (w.grad, both[1])):
        assert got is None or torch.equal(got, expected)
    assert (h.grad is None, w.grad is None) == (not wants_hidden, not wants_weight)


def test_a_second_backward_pass_gives_the_same():
    """What was kept must not be used up."""
    hidden, weight, targets = _random(6, 3, 5)
    total = token_logprobs(hidden, weight, targets).sum()
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(total, (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_gradients_the_same_numbers_and_no_graph():
    hidden, weight, targets = _random(6, 3, 5)
    with torch.no_grad():
        silent = token_logprobs(hidden, weight, targets)
    assert not silent.requires_grad
    assert torch.equal(silent, token_logprobs(hidden, weight, targets).detach())


def test_bfloat16_gives_float32_and_keeps_its_gradients_types():
    hidden, weight, targets = _random(600, 8, 16)
    h16 = hidden.detach().bfloat16().requires_grad_()
    w32 = weight.detach().float().requires_grad_()
    got = token_logprobs(h16, w32, targets)
    got.sum().backward()
    assert (got.dtype, h16.grad.dtype, w32.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    torch.testing.assert_close(got, _plain(h16.float(), w32.bfloat16().float(), targets, 1.0), rtol=2e-2, atol=4e-2)
    _plain(hidden, weight, targets, 1.0).sum().backward()
    assert F.cosine_similarity(w32.grad.flatten().double(), weight.grad.flatten(), dim=0) > 0.999
    assert F.cosine_similarity(h16.grad.flatten().double(), hidden.grad.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("entropy_grad", [False, True])
def test_autocast_does_not_lower_the_precision(entropy_grad: bool):
    hidden, weight, targets = (x.detach() for x in _random(20, 8, 16))
    h, w = hidden.float().requires_grad_(), weight.float().requires_grad_()

    def grads(got: torch.Tensor) -> list[torch.Tensor]:
        return [got, *torch.autograd.grad(got.sum(), (h, w))]

    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = token_logprobs_and_entropy(h, w, targets, entropy_grad=entropy_grad)
    outside, _ = token_logprobs_and_entropy(h, w, targets, entropy_grad=entropy_grad)
    assert all(torch.equal(a, b) for a, b in zip(grads(inside), grads(outside), strict=True))


def test_huge_and_hopeless_logits_stay_exact():
    """Logits 0 and 1000: the unlikely token has log-prob -1000, though its probability is 0 in float32."""
    weight = torch.tensor([[0.0], [1000.0]], requires_grad=True)
    hidden = torch.ones(2, 1, requires_grad=True)
    got, entropy = token_logprobs_and_entropy(hidden, weight, torch.tensor([0, 1]))
    assert got.tolist() == [-1000.0, 0.0]
    assert entropy.tolist() == [0.0, 0.0]
    got.sum().backward()
    assert hidden.grad.tolist() == [[-1000.0], [0.0]]


def test_entropy_is_detached_unless_asked_for():
    hidden, weight, targets = _random(6, 3, 5)
    got, entropy = token_logprobs_and_entropy(hidden, weight, targets, temperature=0.7)
    assert got.requires_grad
    assert not entropy.requires_grad
    same, with_grad = token_logprobs_and_entropy(hidden, weight, targets, temperature=0.7, entropy_grad=True)
    assert with_grad.requires_grad
    torch.testing.assert_close((same, with_grad), (got, entropy), rtol=1e-12, atol=1e-12)
    empty, none = token_logprobs_and_entropy(hidden[:0], weight, targets[:0], entropy_grad=True)
    assert (empty.shape, none.shape) == ((0,), (0,))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_agrees_with_trl(temperature: float):
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    hidden, weight, targets = (x.detach() for x in _random(12, 8, 50))
    logits = (hidden @ weight.T).view(3, 4, 50)
    got, entropy = token_logprobs_and_entropy(hidden, weight, targets, temperature=temperature)
    expected = selective_log_softmax(logits, targets.view(3, 4), temperature=temperature)
    torch.testing.assert_close(got.view(3, 4), expected)
    torch.testing.assert_close(entropy.view(3, 4), entropy_from_logits(logits / temperature))


def test_shift_and_mask_by_hand():
    """Four ids; the mask keeps 1 and 3, so hidden states 0 and 2 are asked for ids 1 and 3."""
    hidden, weight, _ = _random(3, 4, 6)
    ids, mask = torch.tensor([[5, 1, 2, 3]]), torch.tensor([[True, True, False, True]])
    got = response_logprobs(hidden[None], weight, ids, mask)
    expected = F.log_softmax(hidden @ weight.T, -1)
    assert got[0].tolist() == pytest.approx([0, expected[0, 1].item(), 0, expected[2, 3].item()])
    total = sequence_logprobs(hidden[None], weight, ids, mask)
    assert total.tolist() == pytest.approx([expected[0, 1].item() + expected[2, 3].item()])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), padding=st.integers(1, 3))
def test_padding_and_order_change_nothing(seed: int, padding: int):
    """Padding holds NaN: it never reaches a value or a gradient."""
    hidden, weight, _ = _random(12, 4, 6, seed)
    g = torch.Generator().manual_seed(seed)
    hidden = hidden.detach().view(3, 4, 4)
    ids, mask = torch.randint(6, (3, 5), generator=g), torch.rand(3, 5, generator=g) < 0.6
    plain = response_logprobs(hidden, weight, ids, mask)
    padded = F.pad(hidden, (0, 0, 0, padding), value=math.nan).requires_grad_()
    longer = response_logprobs(padded, weight, F.pad(ids, (0, padding)), F.pad(mask, (0, padding)))
    torch.testing.assert_close(longer, F.pad(plain, (0, padding)), rtol=0, atol=1e-14)
    longer.sum().backward()
    assert padded.grad.isfinite().all()
    assert not padded.grad[:, :-padding][~mask[:, 1:]].any()
    order = torch.randperm(3, generator=g)
    permuted = response_logprobs(hidden[order], weight, ids[order], mask[order])
    torch.testing.assert_close(permuted, plain[order], rtol=0, atol=1e-14)


def test_a_row_without_response_gives_zero_and_no_gradient():
    hidden, weight, _ = _random(3, 4, 6)
    ids, mask = torch.tensor([[5, 1, 2, 3]]), torch.tensor([[True, False, False, False]])
    total = sequence_logprobs(hidden[None], weight, ids, mask)
    total.sum().backward()
    assert total.tolist() == [0.0]
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_impossible_arguments_are_refused():
    hidden, weight, targets = _random(4, 4, 6)
    with pytest.raises(ValueError, match=r"temperature.*0\.0"):
        token_logprobs(hidden, weight, targets, temperature=0.0)
    with pytest.raises(ValueError, match=r"hidden.*\(1, 4, 4\).*ids.*\(1, 4\)"):
        response_logprobs(hidden[None], weight, targets[None], torch.ones(1, 4, dtype=torch.bool))
