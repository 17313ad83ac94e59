"""RMSNorm's gradient by formula, against autograd."""

import pytest
import torch

from align.model.norms import rms_norm


def definition(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def test_gradient_by_hand():
    """x = (3, 4), eps = 0, weight 1: m = 12.5, r = 12.5^-1/2; for the gradient (1, 0) of the output:

    dx = r g - x r^3 mean(g x) = r (1, 0) - r^3 (3, 4) 1.5 = r (1 - 4.5 / 12.5, -6 / 12.5) = r (0.64, -0.48).
    """
    x = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    rms_norm(x, torch.ones(2, dtype=torch.float64), 0.0)[0].backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.64, -0.48], dtype=torch.float64) / 12.5**0.5)


@pytest.mark.parametrize("trained", [True, False])
def test_values_and_gradients_are_the_definitions(trained):
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, dtype=torch.float64).requires_grad_(trained)
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight, 1e-5), (x,))
    inputs = (x, weight) if trained else (x,)
    grad = torch.randn(2, 3, 7, dtype=torch.float64)
    ours, expected = (torch.autograd.grad(norm(x, weight, 1e-5), inputs, grad) for norm in (rms_norm, definition))
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_forward_pass_with_gradients_gives_the_bits_of_one_without():
    x, weight = torch.randn(5, 64, requires_grad=True), torch.randn(64)
    with torch.no_grad():
        expected = rms_norm(x, weight, 1e-5)
    assert torch.equal(rms_norm(x, weight, 1e-5), expected)


def test_bfloat16_is_torchs():
    x, weight = torch.randn(5, 64).bfloat16().requires_grad_(), torch.ones(64).bfloat16()
    assert rms_norm(x, weight, 1e-5).grad_fn.name() != "_RMSNormBackward"
