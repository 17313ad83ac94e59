"""Paired statistics of models that responded to the same prompts.

Legend: S seeds (runs of one recipe), P prompts, N responses to a prompt.

With one seed an interval is the percentile bootstrap over prompts (Efron & Tibshirani 1993). With several, prompts and
seeds are crossed random effects, and a bootstrap over three seeds would be far too narrow (Owen 2007): the interval is
the generalised one (Weerahandi 1993), a parametric bootstrap of the variance components of the seeds x prompts table.
Coverage of both: benchmarks/interval_coverage.py.
"""

import math
from typing import NamedTuple

import numpy as np

DRAWS = 4_000
"""Bootstrap draws of an interval"""
LEAST_PROMPTS = 20
"""With fewer prompts no difference is reported as shown"""
_SEED = 0
_NEWTON_STEPS = 100
"""Limit of the logistic regression"""


class Estimate(NamedTuple):
    """A mean and its 95% interval.

    Attributes:
        mean: the point.
        low: lower end.
        high: upper end.
        prompts: number of prompts it is based on.
    """

    mean: float
    low: float
    high: float
    prompts: int


def interval(values: np.ndarray) -> Estimate:
    """Mean of per-prompt values with its interval over prompts, and over seeds if there are several.

    Args:
        values: ``[S, P]``.

    Raises:
        ValueError: there is no prompt, or a value is not finite.
    """
    _check(values)
    seeds, prompts = values.shape
    mean = float(values.mean())
    if seeds > 1:
        half = _crossed_half_width(values)
        return Estimate(mean, mean - half, mean + half, prompts)
    low, high = np.quantile(values[0][_drawn(prompts)].mean(1), [0.025, 0.975])
    return Estimate(mean, float(low), float(high), prompts)


def share_interval(values: np.ndarray) -> Estimate:
    """``interval`` of shares, clipped to [0, 1]."""
    estimate = interval(values)
    return estimate._replace(low=max(0.0, estimate.low), high=min(1.0, estimate.high))


def ratio_values(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Values whose mean is ``numerators.sum() / denominators.sum()``, to take an ``interval`` of.

    The delta method: the ratio plus the influence of each cell on it. The difference of two models' values is paired.

    Args:
        numerators: ``[S, P]``.
        denominators: ``[S, P]``, with a sum above 0.

    Returns:
        ``[S, P]``.
    """
    ratio = numerators.sum() / denominators.sum()
    return ratio + (numerators - ratio * denominators) / denominators.mean()


def wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``[S, P]``: share of pairs of responses to a prompt in which a's scores higher, ties half.

    Every response of a meets every response of b to the same prompt by the same seed's run.

    Args:
        a: ``[S, P, N]`` scores.
        b: ``[S, P, M]`` scores.
    """
    gaps = a[..., :, None] - b[..., None, :]
    return ((gaps > 0) + 0.5 * (gaps == 0)).mean((-1, -2))


def length_controlled_wins(a: np.ndarray, b: np.ndarray, lengths_a: np.ndarray, lengths_b: np.ndarray) -> Estimate:
    """Win-rate of a over b at equal length (AlpacaEval 2, Dubois et al. 2024).

    A logistic regression of a's wins on ``tanh(length difference / its standard deviation)``; the rate is its value
    at no difference. Left out of the paper's model: the instruction's difficulty, which both models share here. The
    interval is ``interval`` of the influence of each prompt (and seed) on this value: the delta method.

    Args:
        a: ``[S, P, N]`` scores.
        b: ``[S, P, M]`` scores.
        lengths_a: ``[S, P, N]`` tokens.
        lengths_b: ``[S, P, M]`` tokens.
    """
    _check(a.mean(-1))
    gaps = a[..., :, None] - b[..., None, :]
    won = (gaps > 0) + 0.5 * (gaps == 0)
    longer = (lengths_a[..., :, None] - lengths_b[..., None, :]).astype(np.float64)
    longer = np.tanh(longer / (longer.std() or 1.0))
    design = np.stack([np.ones_like(longer), longer], -1)
    theta, curvature = _logistic(design.reshape(-1, 2), won.reshape(-1))
    rate = _sigmoid(theta[0])
    # The score of each cell of the seeds x prompts table, and its influence on the rate; they sum to zero.
    scores = ((won - _sigmoid(design @ theta))[..., None] * design).sum((2, 3))
    moved = rate * (1 - rate) * (scores @ np.linalg.inv(curvature))[..., 0] * a.shape[0] * a.shape[1]
    return share_interval(rate + moved - moved.mean())


def higher(estimate: Estimate, even: float) -> int | None:
    """The side whose advantage is shown: 0 for a, 1 for b, None if the interval contains equality.

    With fewer than ``LEAST_PROMPTS`` prompts no advantage is shown, whatever the interval.

    Args:
        estimate: of a measure that is larger where a is better.
        even: its value where both are equally good.
    """
    if estimate.prompts < LEAST_PROMPTS or estimate.low <= even <= estimate.high:
        return None
    return 0 if estimate.mean > even else 1


def _drawn(prompts: int) -> np.ndarray:
    return np.random.default_rng(_SEED).integers(0, prompts, (DRAWS, prompts))


def _crossed_half_width(values: np.ndarray) -> float:
    """Half of the generalised 95% interval of the mean of a seeds x prompts table.

    Var(mean) = (E MS_seeds + E MS_prompts - E MS_rest) / (S P); each sum of squares over a chi-squared variable of its
    degrees of freedom is a draw of its expectation. No component is negative, so the sum is at least the rest's.
    """
    seeds, prompts = values.shape
    if prompts == 1:
        return math.inf
    of_seeds, of_prompts, mean = values.mean(1), values.mean(0), values.mean()
    rest = values - of_seeds[:, None] - of_prompts[None] + mean
    squares = prompts * ((of_seeds - mean) ** 2).sum(), seeds * ((of_prompts - mean) ** 2).sum(), (rest**2).sum()
    freedom = seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1)
    rng = np.random.default_rng(_SEED)
    drawn = [square / rng.chisquare(free, DRAWS) for square, free in zip(squares, freedom, strict=True)]
    variance = np.maximum(drawn[0] + drawn[1] - drawn[2], drawn[2]) / (seeds * prompts)
    return float(np.quantile(np.abs(rng.normal(size=DRAWS)) * np.sqrt(variance), 0.95))


def _logistic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression by Newton's method; a faint ridge (1e-3 of a pair) keeps separated data finite.

    Args:
        x: ``[K, 2]``.
        y: ``[K]`` in [0, 1].

    Returns:
        tuple: ``[2]`` parameters, and ``[2, 2]`` minus the Hessian there.
    """
    theta, ridge = np.zeros(2), 1e-3 * np.eye(2)
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(x @ theta)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + ridge
        step = np.linalg.solve(curvature, x.T @ (y - p) - ridge @ theta)
        theta = theta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    return theta, curvature


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * z))


def _check(values: np.ndarray) -> None:
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"values are of shape {values.shape}: they must be [seeds, prompts], at least one each")
    if not np.isfinite(values).all():
        raise ValueError("a value is NaN or infinite: check the judge")
