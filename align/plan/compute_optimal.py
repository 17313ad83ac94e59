"""How many tokens a network of a given size should be trained on to spend its compute best.

Hoffmann et al. 2022 (arXiv:2203.15556) model the loss as L(N, D) = E + A N^-alpha + B D^-beta. For a fixed budget
C = 6 N D it is least where alpha A N^-alpha = beta B D^-beta (their equation 4).

Legend: N parameters, D tokens, C FLOPs.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ScalingLaw:
    """The constants of a fit, with their source."""

    e: float
    """Loss that no network and no data reduce, nats"""
    a: float
    """Factor of the term of N"""
    b: float
    """Factor of the term of D"""
    alpha: float
    """Exponent of N"""
    beta: float
    """Exponent of D"""
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        """L(N, D), nats per token of the fit's own data and tokenizer."""
        return self.e + self.a * parameters**-self.alpha + self.b * tokens**-self.beta

    def tokens(self, parameters: float) -> float:
        """D for which N is the best size of a network with the budget 6 N D."""
        return float(
            (self.beta * self.b / (self.alpha * self.a)) ** (1 / self.beta) * parameters ** (self.alpha / self.beta)
        )


BESIROGLU = ScalingLaw(
    1.8172,
    482.01,
    2085.43,
    0.3478,
    0.3658,
    "Besiroglu et al. 2024, arXiv:2404.10102: a corrected fit to the data of Hoffmann et al. 2022, approach 3",
)

HOFFMANN = ScalingLaw(
    1.69, 406.4, 410.7, 0.34, 0.28, "Hoffmann et al. 2022, arXiv:2203.15556, approach 3 as published (equation 10)"
)
"""Inconsistent with the paper's approaches 1 and 2, as Besiroglu et al. found: kept to show by how much"""

TOKENS_PER_PARAMETER = 20.0
"""Hoffmann et al. 2022, table 3 (approach 1): 20 to 22 tokens per parameter from 400 M to 1 T parameters"""
