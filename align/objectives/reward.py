"""The reward model's loss on preference pairs.

Legend: B pairs.
"""

import torch
import torch.nn.functional as F


def bradley_terry_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    *,
    margin: torch.Tensor | float | None = None,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy of "chosen is better" under Bradley-Terry: p = sigmoid(chosen - rejected - margin).

    The margin is Llama 2's (Touvron et al. 2023, equation 2). Smoothing takes the label to be wrong with that
    probability. Centering adds ``centering * (chosen + rejected)^2``, since the loss alone leaves a constant free
    (Eisenstein et al. 2023).

    Args:
        chosen: ``[B]`` scores.
        rejected: ``[B]`` scores.
        margin: ``[B]`` or a number: by how much chosen should lead.
        label_smoothing: probability that a label is the wrong way round, in [0, 0.5).
        centering: coefficient of the penalty, >= 0.

    Returns:
        ``[B]`` nats.

    Raises:
        ValueError: a setting out of its range, or scores of different shapes.
    """
    if chosen.shape != rejected.shape:
        raise ValueError(f"chosen {tuple(chosen.shape)} and rejected {tuple(rejected.shape)} must have one shape")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 0.5)")
    if not centering >= 0:
        raise ValueError(f"centering is {centering}; it must not be negative")
    lead = chosen - rejected if margin is None else chosen - rejected - margin
    # -log sigmoid(x) = softplus(-x), and flipping the label adds x.
    loss = F.softplus(-lead) + label_smoothing * lead
    return loss + centering * (chosen + rejected).square()
