"""Divergences of a student's next-token distribution from a teacher's, without holding all logits.

With p the teacher's probabilities and q the student's, over a vocabulary, and z the student's logits:

=================  =======================================  ==================================================
divergence         value                                    d value / d z
=================  =======================================  ==================================================
``ForwardKL``      KL(p || q): covers all that p does       q - p
``ReverseKL``      KL(q || p): keeps to what p does best    q (log q/p - KL(q || p))
``JensenShannon``  b KL(p || m) + (1 - b) KL(q || m),       (1 - b) q (log q/m - KL(q || m))
                   m = b p + (1 - b) q
=================  =======================================  ==================================================

Sources: Hinton et al. 2015 (arXiv:1503.02531) for the first; Gu et al. 2024 (arXiv:2306.08543) for the second, on the
student's own samples; Agarwal et al. 2024 (arXiv:2306.13649, equation 1) for the third, which tends to b KL(p || q) for
b near 0 and to (1 - b) KL(q || p) for b near 1.

Legend: N positions, D width of the student, E width of the teacher, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from align.objectives.chunks import add_product, cap_logits, chunk_buffer, chunk_size, logits_into


class Divergence(ABC):
    """Base of the divergences of a student from its teacher.

    Subclass it as a frozen dataclass whose fields are settings.
    """

    @abstractmethod
    def value_and_slope(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The divergence at each position, and its derivative by the student's logits.

        Args:
            student: ``[n, V]`` log-probs of the student, nats.
            teacher: ``[n, V]`` log-probs of the teacher; minus infinity where it has no probability.

        Returns:
            tuple: ``[n]`` nats, at least 0 but for rounding; and ``[n, V]``.
        """


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(teacher || student): the student puts probability wherever the teacher does."""

    def value_and_slope(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Divergence``."""
        p = teacher.exp()
        return _kl(p, teacher, student), student.exp() - p


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(student || teacher): the student avoids what the teacher finds improbable."""

    def value_and_slope(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Divergence``."""
        q = student.exp()
        kl = _kl(q, student, teacher)
        return kl, q * (student - teacher - kl[:, None])


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence, between the two: bounded, and finite where the teacher has probability 0.

    Raises:
        ValueError: beta is outside (0, 1).
    """

    beta: float = 0.5
    """Weight of the teacher in the mixture; near 0 it acts as the forward KL, near 1 as the reverse KL"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if not 0 < self.beta < 1:
            raise ValueError(
                f"divergence.beta is {self.beta}: it must be in (0, 1); for its limits use ForwardKL or ReverseKL"
            )

    def value_and_slope(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Divergence``."""
        p, q = teacher.exp(), student.exp()
        mixture = (self.beta * p + (1 - self.beta) * q).log_()
        from_teacher, from_student = _kl(p, teacher, mixture), _kl(q, student, mixture)
        slope = (1 - self.beta) * q * (student - mixture - from_student[:, None])
        # Where both have underflowed to probability 0 the mixture's logarithm is minus infinity.
        slope.masked_fill_(q == 0, 0)
        return self.beta * from_teacher + (1 - self.beta) * from_student, slope


def _kl(p: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL ``[n]`` of distributions ``[n, V]``; a probability of 0 adds nothing, whatever its logarithm."""
    return (p * (log_p - log_q)).masked_fill(p == 0, 0).sum(-1)


def linear_divergence(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    divergence: Divergence,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Summed divergence of ``hidden @ weight.T`` from ``teacher_hidden @ teacher_weight.T``, as next-token logits.

    Values and gradients are computed chunk by chunk in the forward pass, as in ``linear_cross_entropy``: memory is
    ``chunk * V`` for each network.

    Args:
        hidden: ``[N, D]`` states of the student.
        weight: ``[V, D]`` its output matrix.
        teacher_hidden: ``[N, E]`` states of the teacher; no gradient.
        teacher_weight: ``[V, E]`` its output matrix; no gradient.
        divergence: of the distributions.
        temperature: divides the logits of both, > 0.
        softcap: of the student's logits, see ``cap_logits``; None: none.
        teacher_softcap: of the teacher's.
        chunk: positions whose logits are computed at a time; None: ``chunk_size``.

    Returns:
        ``[]`` nats, at least float32; differentiable by ``hidden`` and ``weight``.

    Raises:
        ValueError: the networks have different vocabularies, or the temperature is not above 0.
    """
    if weight.shape[0] != teacher_weight.shape[0]:
        raise ValueError(f"the student has {weight.shape[0]} ids, the teacher {teacher_weight.shape[0]}")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    chunk = chunk or chunk_size(hidden.device)
    settings = divergence, temperature, softcap, teacher_softcap, chunk
    loss: torch.Tensor = _LinearDivergence.apply(
        hidden, weight, teacher_hidden.detach(), teacher_weight.detach(), settings
    )
    return loss


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        teacher_hidden: torch.Tensor,
        teacher_weight: torch.Tensor,
        settings: tuple[Divergence, float, float | None, float | None, int],
    ) -> torch.Tensor:
        divergence, temperature, softcap, teacher_softcap, chunk = settings
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        ours, theirs = (chunk_buffer(hidden, weight, chunk, dtype) for _ in range(2))
        with torch.autocast(hidden.device.type, enabled=False):
            matrix, teacher_matrix = weight.to(hidden.dtype), teacher_weight.to(teacher_hidden.dtype)
            for start in range(0, len(hidden), chunk):
                rows = slice(start, start + chunk)
                student = logits_into(ours, hidden[rows], matrix)
                cap_slope = cap_logits(student, softcap)
                teacher = logits_into(theirs, teacher_hidden[rows], teacher_matrix)
                cap_logits(teacher, teacher_softcap)
                value, slope = divergence.value_and_slope(
                    torch.log_softmax(student / temperature, -1), torch.log_softmax(teacher / temperature, -1)
                )
                total += value.sum()
                if not (wants_hidden or wants_weight):
                    continue
                slope = slope / temperature if cap_slope is None else slope * cap_slope / temperature
                slope = slope.to(hidden.dtype)
                if grad_hidden is not None:
                    torch.mm(slope, matrix, out=grad_hidden[rows])
                if grad_weight is not None:
                    add_product(grad_weight, slope.T, hidden[rows])
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad.to(grad_weight.dtype),
            None,
            None,
            None,
        )
