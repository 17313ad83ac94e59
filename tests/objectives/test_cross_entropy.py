import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from align.objectives import linear_cross_entropy, next_token_loss, row_nll


def _random(n: int, width: int, vocab: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, width, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocab, width, generator=g, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(vocab, (n,), generator=g)


def test_two_positions_by_hand():
    """Width 1, weights 0 and ln 3, hidden 1 and 0.

    Position 0: logits (0, ln 3), p = (1/4, 3/4), target 1: nll ln(4/3). Position 1: logits (0, 0), target 0: ln 2.
    """
    weight = torch.tensor([[0.0], [math.log(3)]])
    loss, nll = linear_cross_entropy(torch.tensor([[1.0], [0.0]]), weight, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(math.log(4 / 3) + math.log(2))
    assert nll.item() == loss.item()


def test_z_loss_by_hand():
    """Logits (0, 0): the log-partition is ln 2, so the penalty of one position is z (ln 2)^2."""
    loss, nll = linear_cross_entropy(torch.zeros(1, 1), torch.ones(2, 1), torch.tensor([0]), z_loss=0.5)
    assert nll.item() == pytest.approx(math.log(2))
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * math.log(2) ** 2)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 9),
    vocab=st.integers(2, 7),
    chunk=st.integers(1, 10),
    z_loss=st.sampled_from([0.0, 0.1]),
    softcap=st.sampled_from([None, 0.7]),
    seed=st.integers(0, 99),
)
def test_value_and_gradients_equal_plain_torch(
    n: int, vocab: int, chunk: int, z_loss: float, softcap: float | None, seed: int
):
    hidden, weight, targets = _random(n, 3, vocab, seed)
    loss, _ = linear_cross_entropy(hidden, weight, targets, softcap=softcap, z_loss=z_loss, chunk=chunk)
    ours = torch.autograd.grad(3 * loss, (hidden, weight))
    logits = F.linear(hidden, weight)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    plain = F.cross_entropy(logits, targets, reduction="sum") + z_loss * logits.logsumexp(-1).square().sum()
    theirs = torch.autograd.grad(3 * plain, (hidden, weight))
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_bfloat16_hidden_states_accumulate_the_weight_gradient_in_float32():
    hidden, weight, targets = _random(600, 8, 16)
    h16 = hidden.detach().bfloat16().requires_grad_()
    w32 = weight.detach().float().requires_grad_()
    loss, _ = linear_cross_entropy(h16, w32, targets)
    loss.backward()
    logits = F.linear(h16.detach().float(), w32.detach().bfloat16().float())
    plain = F.cross_entropy(logits, targets, reduction="sum")
    assert loss.dtype == torch.float32
    assert h16.grad.dtype == torch.bfloat16
    assert w32.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=2e-2)


def test_shift_and_mask_count_only_what_the_mask_says():
    """Four ids, targets at 1..3; the mask keeps 1 and 3, so hidden states 0 and 2 are read."""
    hidden, weight, _ = _random(3, 4, 6)
    ids = torch.tensor([[5, 1, 2, 3]])
    mask = torch.tensor([[True, True, False, True]])
    got = next_token_loss(hidden[None], weight, ids, mask)
    expected = F.cross_entropy(F.linear(hidden[[0, 2]], weight), torch.tensor([1, 3]), reduction="sum")
    assert got.tokens.item() == 2
    torch.testing.assert_close(got.loss, expected)


def test_padding_changes_nothing():
    hidden, weight, _ = _random(3, 4, 6)
    ids, mask = torch.tensor([[5, 1, 2, 3]]), torch.ones(1, 4, dtype=torch.bool)
    plain = next_token_loss(hidden[None], weight, ids, mask)
    padded = next_token_loss(
        F.pad(hidden, (0, 0, 0, 2), value=7.0)[None], weight, F.pad(ids, (0, 2)), F.pad(mask, (0, 2))
    )
    assert padded.tokens == plain.tokens
    torch.testing.assert_close(padded.loss, plain.loss)


def test_nothing_counted_gives_zero_loss_and_zero_gradients():
    hidden, weight, _ = _random(3, 4, 6)
    got = next_token_loss(hidden[None], weight, torch.tensor([[5, 1, 2, 3]]), torch.zeros(1, 4, dtype=torch.bool))
    got.loss.backward()
    assert (got.loss.item(), got.tokens.item()) == (0.0, 0)
    assert hidden.grad.abs().max() == 0
    assert weight.grad.abs().max() == 0


def test_rows_add_up_to_the_batch():
    hidden, weight, _ = _random(6, 4, 6)
    ids = torch.tensor([[5, 1, 2, 3], [0, 4, 4, 1]])
    mask = torch.tensor([[True, True, False, True], [False, False, True, True]])
    nll, tokens = row_nll(hidden.view(2, 3, 4), weight, ids, mask)
    assert tokens.tolist() == [2, 2]
    whole = next_token_loss(hidden.view(2, 3, 4), weight, ids, mask)
    torch.testing.assert_close(nll.sum(), whole.nll)
    first = F.cross_entropy(F.linear(hidden[[0, 2]], weight), torch.tensor([1, 3]), reduction="sum")
    torch.testing.assert_close(nll[0], first.detach())


def test_hidden_of_the_whole_row_is_refused():
    hidden, weight, _ = _random(4, 4, 6)
    with pytest.raises(ValueError, match=r"hidden.*\(1, 4, 4\).*ids.*\(1, 4\)"):
        next_token_loss(hidden[None], weight, torch.tensor([[5, 1, 2, 3]]), torch.ones(1, 4, dtype=torch.bool))
