"""Estimates of KL(policy || reference) from tokens the policy sampled, and where each may be used.

With d = log policy - log reference of a sampled token (Schulman 2020, "Approximating KL divergence"):
k1 = d, unbiased, of high variance; k2 = d^2 / 2, biased; k3 = exp(-d) - 1 + d, unbiased; k2 and k3 are never negative.

A good estimate of the KL need not have a good gradient (Tang and Munos 2025, arXiv:2506.09477; Shah et al. 2025,
arXiv:2512.21852). In expectation over a token that the policy itself sampled:

=========  ==============================================  =================================================
estimator  in the reward: E[k grad log policy]             as a loss: E[grad k]
=========  ==============================================  =================================================
k1         the KL's gradient: right                        0: nothing but noise
k2         punishes what the policy says too rarely as     the KL's gradient: right
           much as what it says too often
k3         the KL's gradient minus that of the opposite    gradient of the opposite KL: biased, but agrees
           KL(reference || policy): the two cancel near    near the reference, and is what GRPO does
           the reference                                   (Shao et al. 2024, equation 4)
=========  ==============================================  =================================================

So k1 belongs in the reward, k2 and k3 in the loss, and the rest is refused. A loss summed over tokens leaves out what a
token does to the KL of later ones; the reward, carried back by returns, does not.
"""

from typing import Literal, get_args

import torch

KLKind = Literal["k1", "k2", "k3"]
KLUse = Literal["reward", "loss"]
_PLACE = {"reward": "in the reward", "loss": "as a loss"}
_REFUSED = {
    ("k1", "loss"): "its expected gradient is zero; use k2, or k3",
    ("k2", "reward"): "it punishes tokens said too rarely as much as those said too often; use k1",
    ("k3", "reward"): "its expected gradient vanishes near the reference, where it should hold the policy; use k1",
}


def kl_estimate(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, kind: KLKind) -> torch.Tensor:
    """Estimate KL(policy || reference) at each token; differentiable.

    Args:
        logprobs: any shape, of sampled tokens under the policy, nats.
        reference_logprobs: the same tokens under the reference.
        kind: which estimator, see above.

    Returns:
        The shape of ``logprobs``, nats; 0 where both are equal, so padding that holds 0 stays 0.

    Raises:
        ValueError: there is no such estimator.
    """
    difference = logprobs - reference_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    _check_kind(kind)
    # expm1: near the reference k3 is d^2 / 2, which exp(-d) - 1 would round away.
    return torch.expm1(-difference) + difference


def check_kl_use(kind: str, use: str) -> None:
    """Refuse an estimator where its gradient is wrong: see the table above.

    Raises:
        ValueError: in one line, why, and which to take.
    """
    _check_kind(kind)
    if use not in get_args(KLUse):
        raise ValueError(f"a KL estimate is used in the {' or the '.join(get_args(KLUse))}, not in {use!r}")
    if reason := _REFUSED.get((kind, use)):
        raise ValueError(f"KL estimator {kind} cannot be used {_PLACE[use]}: {reason}")


def _check_kind(kind: str) -> None:
    if kind not in get_args(KLKind):
        raise ValueError(f"unknown KL estimator {kind!r}; there are {', '.join(get_args(KLKind))}")
