"""Divergences of a student from its teacher: by hand, against autograd on whole logits, and against TRL."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import naming

from align.objectives import Divergence, ForwardKL, JensenShannon, ReverseKL, linear_divergence

ALL = [ForwardKL(), ReverseKL(), JensenShannon(), JensenShannon(0.1)]


def test_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4): m = (3/8, 5/8).

    KL(p || q) = ln(2)/2 + ln(2/3)/2; KL(q || p) = ln(1/2)/4 + 3 ln(3/2)/4; and half of each to m.
    """
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    forward = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    reverse = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    to_mixture = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5), 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    for divergence, expected in (
        (ForwardKL(), forward),
        (ReverseKL(), reverse),
        (JensenShannon(0.5), sum(to_mixture) / 2),
    ):
        assert divergence.value_and_slope(q, p)[0].item() == pytest.approx(expected)


def _inputs(seed, *, dtype=torch.float64, vocabulary=11):
    g = torch.Generator().manual_seed(seed)
    sizes = (7, 5), (vocabulary, 5), (7, 3), (vocabulary, 3)
    return [torch.randn(size, generator=g, dtype=dtype) for size in sizes]


def _plain(divergence, hidden, weight, teacher_hidden, teacher_weight, temperature, caps):
    """Whole logits, in differentiable operations."""
    ours, theirs = hidden @ weight.T, teacher_hidden @ teacher_weight.T
    ours, theirs = (
        z if cap is None else cap * torch.tanh(z / cap) for z, cap in zip((ours, theirs), caps, strict=True)
    )
    q, p = ((z / temperature).softmax(-1) for z in (ours, theirs))

    def kl(a, b):
        return (a * (a / b).log()).sum()

    if isinstance(divergence, ForwardKL):
        return kl(p, q)
    if isinstance(divergence, ReverseKL):
        return kl(q, p)
    mixture = divergence.beta * p + (1 - divergence.beta) * q
    return divergence.beta * kl(p, mixture) + (1 - divergence.beta) * kl(q, mixture)


@pytest.mark.parametrize("divergence", ALL, ids=str)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    temperature=st.sampled_from([1.0, 2.5]),
    caps=st.sampled_from([(None, None), (2.0, None), (3.0, 1.5)]),
    chunk=st.integers(1, 9),
)
def test_chunks_equal_whole_logits_with_both_gradients(divergence: Divergence, seed, temperature, caps, chunk):
    tensors = _inputs(seed)
    found = []
    for chunked in (True, False):
        hidden, weight, *teacher = (t.clone() for t in tensors)
        hidden.requires_grad_(), weight.requires_grad_()
        if chunked:
            loss = linear_divergence(
                hidden, weight, *teacher, divergence,
                temperature=temperature, softcap=caps[0], teacher_softcap=caps[1], chunk=chunk,
            )  # fmt: skip
        else:
            loss = _plain(divergence, hidden, weight, *teacher, temperature, caps)
        (3 * loss).backward()
        found.append((loss.detach(), hidden.grad, weight.grad))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(
    ("divergence", "beta"), [(ForwardKL(), 0.0), (ReverseKL(), 1.0), (JensenShannon(0.3), 0.3)], ids=str
)
def test_values_and_gradients_equal_trls(divergence: Divergence, beta: float):
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    hidden, weight, teacher_hidden, teacher_weight = _inputs(0, dtype=torch.float32)
    hidden.requires_grad_()
    theirs, _, count = _chunked_divergence_loss(
        hidden[None], teacher_hidden[None], weight, teacher_weight, torch.ones(1, 7), beta, 1, temperature=1.7
    )
    (expected,) = torch.autograd.grad(theirs, hidden)
    ours = linear_divergence(hidden, weight, teacher_hidden, teacher_weight, divergence, temperature=1.7)
    (found,) = torch.autograd.grad(ours, hidden)
    assert int(count) == 7
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_a_student_equal_to_its_teacher_has_none(divergence: Divergence):
    hidden, weight, *_ = _inputs(1)
    hidden.requires_grad_()
    loss = linear_divergence(hidden, weight, hidden.detach(), weight, divergence)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert hidden.grad.abs().max().item() < 1e-12


@pytest.mark.parametrize("divergence", [ForwardKL(), JensenShannon()], ids=str)
def test_probabilities_that_underflow_are_zero_and_not_nan(divergence: Divergence):
    hidden = torch.tensor([[1.0], [1.0]], requires_grad=True)
    weight, teacher = torch.tensor([[0.0], [-2000.0], [1.0]]), torch.tensor([[0.0], [-2000.0], [-1.0]])
    loss = linear_divergence(hidden, weight, torch.ones(2, 1), teacher, divergence)
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad.isfinite().all()


def test_no_positions_give_zero_and_zero_gradients():
    hidden, weight, teacher_hidden, teacher_weight = _inputs(2)
    hidden = hidden[:0].requires_grad_()
    loss = linear_divergence(hidden, weight, teacher_hidden[:0], teacher_weight, ForwardKL())
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.shape == (0, 5)


def test_impossible_arguments_are_refused():
    tensors = _inputs(3)
    with pytest.raises(ValueError, match=naming(11, 10)):
        linear_divergence(*tensors[:3], tensors[3][:10], ForwardKL())
    with pytest.raises(ValueError, match=naming("temperature", 0)):
        linear_divergence(*tensors, ForwardKL(), temperature=0)
    for beta in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=naming("divergence.beta", beta)):
            JensenShannon(beta)
