"""Statistics of a comparison: by hand, against SciPy, and on simulated models whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from align.evaluate.statistics import Estimate, higher, interval, length_controlled_wins, share_interval, wins


def simulate(
    rng: np.random.Generator, *, seeds: int, prompts: int, n: int, effect: float, of_seed: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two models: prompts differ in difficulty and in whom they suit, seeds in luck, responses in all."""
    difficulty, suits = rng.normal(0, 0.3, prompts), rng.normal(0, 0.3, prompts)
    shape = (seeds, prompts, n)
    a = effect + (difficulty + suits)[None, :, None] + rng.normal(0, of_seed, (seeds, 1, 1)) + rng.normal(size=shape)
    b = difficulty[None, :, None] + rng.normal(0, of_seed, (seeds, 1, 1)) + rng.normal(size=shape)
    return a, b


def true_win_rate(effect: float, of_seed: float) -> float:
    """P(a > b): their difference is normal with variance 0.3^2 + 2 of_seed^2 + 1 + 1."""
    return float(stats.norm.cdf(effect / np.sqrt(0.09 + 2 * of_seed**2 + 2)))


def test_wins_by_hand() -> None:
    """a = (1, 3) meets b = (1, 2): 1=1 (1/2), 1<2 (0), 3>1 (1), 3>2 (1): 2.5 / 4."""
    a, b = np.array([[[1.0, 3.0]]]), np.array([[[1.0, 2.0]]])
    assert wins(a, b).tolist() == [[0.625]]
    assert wins(b, a).tolist() == [[0.375]]


def test_one_seed_is_the_percentile_bootstrap_over_prompts() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=(1, 80))
    ours = interval(values)
    theirs = stats.bootstrap(
        (values[0],), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_several_seeds_of_known_variance() -> None:
    """Many seeds and prompts: the variance components are known, and the interval is the normal one around the mean.

    A table of seed luck (std 2), prompt difficulty (std 3) and noise (std 1), 400 x 400:
    Var(mean) = 4 / 400 + 9 / 400 + 1 / 160,000, half an interval is 1.96 sqrt(0.0325) = 0.353.
    """
    rng = np.random.default_rng(0)
    table = rng.normal(0, 2, (400, 1)) + rng.normal(0, 3, (1, 400)) + rng.normal(size=(400, 400))
    estimate = interval(table)
    assert estimate.mean == pytest.approx(table.mean())
    assert estimate.high - estimate.mean == pytest.approx(0.353, rel=0.1)
    assert estimate.mean - estimate.low == pytest.approx(estimate.high - estimate.mean)


def test_seeds_that_are_alike_count_as_more_responses() -> None:
    """Without luck of seeds the interval is that of the prompts' means, as of one seed."""
    rng = np.random.default_rng(0)
    table = np.repeat(rng.normal(size=(1, 200)), 5, axis=0)
    many, one = interval(table), interval(table[:1])
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.1)


def test_shares_stay_between_none_and_all() -> None:
    table = np.array([[1.0, 1.0, 0.9], [0.4, 0.6, 0.5]])
    assert interval(table).high > 1
    assert share_interval(table).high == 1
    assert share_interval(1 - table).low == 0


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert interval(np.full((1, 30), 0.5)) == (0.5, 0.5, 0.5, 30)
    assert interval(np.full((3, 30), 0.5)) == (0.5, 0.5, 0.5, 30)


@given(st.integers(0, 10**6), st.sampled_from([1, 3]))
def test_sides_are_symmetric(seed: int, seeds: int) -> None:
    a, b = simulate(np.random.default_rng(seed), seeds=seeds, prompts=20, n=2, effect=0.2, of_seed=0.1)
    one, other = interval(wins(a, b)), interval(wins(b, a))
    assert one.mean == pytest.approx(1 - other.mean)
    assert one.low == pytest.approx(1 - other.high)
    assert higher(one, 0.5) == {0: 1, 1: 0, None: None}[higher(other, 0.5)]


@pytest.mark.parametrize(
    ("estimate", "even", "expected"),
    [
        (Estimate(0.6, 0.55, 0.65, 100), 0.5, 0),
        (Estimate(0.4, 0.35, 0.45, 100), 0.5, 1),
        (Estimate(0.6, 0.49, 0.71, 100), 0.5, None),
        (Estimate(0.9, 0.8, 1.0, 19), 0.5, None),
        (Estimate(0.9, 0.8, 1.0, 20), 0.5, 0),
        (Estimate(-0.1, -0.2, -0.05, 100), 0.0, 1),
        (Estimate(0.4, -0.1, 0.9, 100), 0.0, None),
    ],
)
def test_the_side_that_is_higher(estimate: Estimate, even: float, expected: int | None) -> None:
    assert higher(estimate, even) == expected


def test_length_control_is_a_logistic_regression() -> None:
    """The point is that of SciPy's optimiser on the same likelihood."""
    rng = np.random.default_rng(0)
    a, b = simulate(rng, seeds=1, prompts=60, n=2, effect=0.3, of_seed=0)
    lengths_a, lengths_b = rng.integers(5, 40, a.shape), rng.integers(5, 30, b.shape)
    ours = length_controlled_wins(a, b, lengths_a, lengths_b)
    gaps = (lengths_a[..., :, None] - lengths_b[..., None, :]).astype(float)
    x = np.tanh(gaps / gaps.std()).ravel()
    y = (a[..., :, None] > b[..., None, :]).astype(float).ravel()

    def loss(theta: np.ndarray) -> float:
        z = theta[0] + theta[1] * x
        return float((np.logaddexp(0, z) - y * z).sum())

    constant = optimize.minimize(loss, np.zeros(2), tol=1e-10).x[0]
    assert ours.mean == pytest.approx(1 / (1 + np.exp(-constant)), abs=1e-4)


def test_length_control_removes_a_planted_length_bias() -> None:
    """Equal models; a talks longer and the judge pays 0.1 a token: a wins, but not at equal length."""
    rng = np.random.default_rng(0)
    shape = (1, 400, 4)
    lengths_a, lengths_b = rng.normal(40, 8, shape).round(), rng.normal(30, 8, shape).round()
    a, b = rng.normal(size=shape) + 0.1 * lengths_a, rng.normal(size=shape) + 0.1 * lengths_b
    assert interval(wins(a, b)).low > 0.65
    controlled = length_controlled_wins(a, b, lengths_a, lengths_b)
    assert controlled.low < 0.5 < controlled.high
    assert controlled.high - controlled.low < 0.1


def test_length_control_of_responses_all_equally_long_is_the_win_rate() -> None:
    a, b = simulate(np.random.default_rng(3), seeds=1, prompts=80, n=2, effect=0.4, of_seed=0)
    lengths = np.full(a.shape, 12)
    assert length_controlled_wins(a, b, lengths, lengths).mean == pytest.approx(wins(a, b).mean(), abs=1e-4)


def test_separable_wins_stay_finite() -> None:
    a, b = np.ones((1, 30, 2)), np.zeros((1, 30, 2))
    controlled = length_controlled_wins(a, b, np.full(a.shape, 9), np.full(a.shape, 3))
    assert controlled.mean > 0.98
    assert np.isfinite(controlled).all()


@pytest.mark.parametrize("values", [np.zeros((1, 0)), np.zeros((0, 3)), np.full((1, 3), np.nan), np.zeros(3)])
def test_impossible_values_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="value"):
        interval(values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "prompts", "n", "of_seed"), [(1, 100, 4, 0.0), (1, 200, 2, 0.0), (3, 200, 4, 0.1), (5, 100, 4, 0.1)]
)
def test_intervals_cover_the_truth(seeds: int, prompts: int, n: int, of_seed: float) -> None:
    """In 93 to 97% of 1,000 comparisons; the benchmark interval_coverage.py has more cases and the ones that miss."""
    rng, effect, covered = np.random.default_rng(1), 0.3, np.zeros(2)
    truth = true_win_rate(effect, of_seed)
    for _ in range(1_000):
        a, b = simulate(rng, seeds=seeds, prompts=prompts, n=n, effect=effect, of_seed=of_seed)
        rate, difference = interval(wins(a, b)), interval(a.mean(-1) - b.mean(-1))
        covered += [rate.low <= truth <= rate.high, difference.low <= effect <= difference.high]
    assert ((covered >= 930) & (covered <= 970)).all(), covered
