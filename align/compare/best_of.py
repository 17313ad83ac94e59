"""Best of N: of N responses of a model to a prompt, the one that a judge scores highest.

Legend: P prompts, N responses to choose from, n chosen responses of each prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from align.compare.respond import Response


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """How responses are chosen from another candidate's.

    Raises:
        ValueError: n is below 2.
    """

    model: str
    """Name of the candidate that is sampled"""
    n: int
    """``N``"""
    judge: str
    """Name of the judge that chooses"""
    keep_unfinished: bool = False
    """Truncated responses may be chosen too"""

    def __post_init__(self) -> None:
        """Reject an invalid N."""
        if self.n < 2:
            raise ValueError(f"the best of {self.n} responses of {self.model}: N must be at least 2")

    @property
    def kl_bound(self) -> float:
        """Upper bound of the KL from the model that is sampled, nats: log N - (N - 1) / N.

        Exact where no two responses are the same (Stiennon et al. 2020, appendix G.3), an upper bound otherwise
        (Beirami et al. 2024).
        """
        return math.log(self.n) - (self.n - 1) / self.n

    def choose(self, responses: Sequence[Sequence["Response"]], scores: np.ndarray) -> np.ndarray:
        """``[P, n]`` numbers of the chosen responses.

        Responses jN to jN + N - 1 compete for place j. Empty ones and, unless ``keep_unfinished``, truncated ones are
        chosen only where all N are such. Of equal scores the first is chosen.

        Args:
            responses: ``P`` rows of ``n * N``.
            scores: ``[P, n * N]``, by the judge.
        """
        usable = np.array(
            [[bool(one.text.strip()) and (one.finished or self.keep_unfinished) for one in row] for row in responses]
        )
        groups = (len(responses), -1, self.n)
        scores, usable = scores.reshape(groups), usable.reshape(groups)
        usable = usable | ~usable.any(-1, keepdims=True)
        best = np.where(usable, scores, -np.inf).argmax(-1)
        return best + self.n * np.arange(best.shape[1])
