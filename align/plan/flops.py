"""FLOPs of a run, by what they are spent on. A multiply-add is two.

A token costs 6 N + 12 L (H E) T in training and a third of it in a forward pass (``GPT.flops_per_token``, the
convention of PaLM, Chowdhery et al. 2022, arXiv:2204.02311, appendix B); weights frozen below adapters cost 4 instead
of 6, as they have no gradient of their own.

Legend: N parameters in matrix products, L layers, H heads, E width of a head, T tokens of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from align.model.gpt import attention_flops, matrix_flops
from align.plan.job import Job, PlannedNetwork
from align.plan.parameters import Weight, weights_of

_ONCE_PER_ROW = ("o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers of the last block that run only at a row's last token where a scalar network scores rows"""


@dataclass(frozen=True)
class FlopsPerToken:
    """Of one network, in rows of a given length."""

    matrices: int
    """Products with weights, adapters included"""
    attention: int
    """Scores and mixtures"""

    @property
    def total(self) -> int:
        """The sum."""
        return self.matrices + self.attention


def flops_per_token(network: PlannedNetwork, context: int, *, forward_only: bool = False) -> FlopsPerToken:
    """FLOPs of a token.

    Args:
        network: a policy computes logits at every token, a value model its last block; a scalar network that scores
            rows computes these only once per row, which is left out.
        context: T.
        forward_only: exclude the backward pass.
    """
    if network.head_only:
        return FlopsPerToken(0, 0)
    matrices = matrix_flops(list(_matrices(network)), forward_only)
    return FlopsPerToken(matrices, attention_flops(network.config, context, forward_only=forward_only))


def _matrices(network: PlannedNetwork) -> Iterator[torch.Tensor]:
    """What each token is multiplied by, without memory; trained matrices require gradients."""
    adapted = network.lora is not None
    weights = [weight for weight in weights_of(network.config) if weight.base]
    for weight in (*weights, *network.adapter()):
        if weight.matrix and not (network.scalar and network.role != "value" and _once_per_row(weight, network)):
            yield _shape(weight.numel, trained=not adapted or weight.part == "adapters")
    if not network.scalar:
        # Tied or not, the output matrix is multiplied; embeddings are looked up.
        yield _shape(network.config.vocab_size * network.config.width, trained=not adapted)


def _once_per_row(weight: Weight, network: PlannedNetwork) -> bool:
    return weight.depth == network.config.layers - 1 and weight.layer in _ONCE_PER_ROW


def _shape(numel: int, *, trained: bool) -> torch.Tensor:
    return nn.Parameter(torch.empty(numel, device="meta"), requires_grad=trained)


def recomputed_per_token(network: PlannedNetwork, job: Job, context: int) -> int:
    """FLOPs of a token that activation checkpointing computes again.

    Args:
        network: that is trained.
        job: the run.
        context: T.
    """
    if job.recompute == "none" or network.head_only:
        return 0
    feed_only = job.recompute == "selective"
    weights = [w for w in (*weights_of(network.config), *network.adapter()) if w.block and w.matrix]
    again = 2 * sum(w.numel for w in weights if not feed_only or w.layer in _ONCE_PER_ROW[1:])
    return again if feed_only else again + attention_flops(network.config, context, forward_only=True)


@dataclass(frozen=True)
class RunFlops:
    """FLOPs of a whole run, over all devices."""

    training: dict[str, float]
    """Forward and backward passes, by role"""
    recomputation: float
    """What activation checkpointing computes again; not model FLOPs"""
    sampling: float
    """Prompts and tokens of rollouts"""
    reading: dict[str, float]
    """Forward passes alone, by role"""

    @property
    def model(self) -> float:
        """Model FLOPs: without recomputation."""
        return sum(self.training.values()) + self.sampling + sum(self.reading.values())

    @property
    def total(self) -> float:
        """What the hardware computes."""
        return self.model + self.recomputation

    def parts(self) -> dict[str, float]:
        """By name, without what is 0."""
        found = {f"training {role}": flops for role, flops in self.training.items()}
        found |= {"recomputation": self.recomputation, "sampling": self.sampling}
        found |= {f"reading {role}": flops for role, flops in self.reading.items()}
        return {name: flops for name, flops in found.items() if flops}


def flops_of(job: Job) -> RunFlops | None:
    """FLOPs of a run; None if its length is unknown."""
    volume = job.volume
    if volume.trained is None:
        return None
    context = max(1, round(volume.row_tokens))
    by_role = {network.role: network for network in job.networks}
    sampling = 0.0
    if job.rollout is not None and volume.iterations is not None:
        prompts = volume.iterations * job.rollout.episodes * job.rollout.prompt_tokens
        forward = flops_per_token(job.policy, context, forward_only=True).total
        sampling = (prompts + volume.sampled) * forward
    reading = {
        role: tokens * flops_per_token(by_role.get(role, job.policy), context, forward_only=True).total
        for role, tokens in volume.read.items()
    }
    return RunFlops(
        training={n.role: volume.trained * flops_per_token(n, context).total for n in job.trained if not n.head_only},
        recomputation=sum(volume.trained * recomputed_per_token(n, job, context) for n in job.trained),
        sampling=sampling,
        reading=reading,
    )
