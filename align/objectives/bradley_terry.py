"""The reward model's loss on preference pairs: Bradley-Terry.

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
    """Cross-entropy of "chosen is better", of probability sigmoid(chosen - rejected - margin) (Bradley and Terry 1952).

    This depends on differences of scores only; ``centering * (chosen + rejected)^2`` fixes their mean (Eisenstein et
    al. 2023).

    Args:
        chosen: ``[B]`` scores.
        rejected: ``[B]`` scores.
        margin: ``[B]`` or a number: by how much chosen should exceed rejected (Touvron et al. 2023, equation 2).
        label_smoothing: probability that a label is flipped, in [0, 0.5).
        centering: coefficient of the centering term, >= 0.

    Returns:
        ``[B]`` nats.

    Raises:
        ValueError: a setting is out of range, or the scores differ in shape.
    """
    if chosen.shape != rejected.shape:
        raise ValueError(
            f"chosen is {tuple(chosen.shape)} and rejected {tuple(rejected.shape)}; their shapes must be equal"
        )
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 0.5)")
    if not centering >= 0:
        raise ValueError(f"centering is {centering}; it must be at least 0")
    lead = chosen - rejected if margin is None else chosen - rejected - margin
    # -log sigmoid(x) = softplus(-x), and flipping the label adds x.
    loss = F.softplus(-lead) + label_smoothing * lead
    return loss + centering * (chosen + rejected).square()
