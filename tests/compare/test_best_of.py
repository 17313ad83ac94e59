"""The best of N by hand on fixed scores, and the bound of its KL."""

import math

import numpy as np
import pytest

from align.compare.best_of import BestOf
from align.compare.candidates import Candidate, Run
from align.compare.comparison import Task
from align.compare.judges import Judge
from align.compare.respond import Response, ResponseConfig


def row(*texts: str) -> list[Response]:
    """Responses that are finished if they end with a dot."""
    return [Response(text, len(text), text.endswith("."), 0.0) for text in texts]


def choose(scores: list[list[float]], *rows: list[Response], n: int = 2, keep_unfinished: bool = False):
    rule = BestOf(model="sft", n=n, judge="gold", keep_unfinished=keep_unfinished)
    return rule.choose(rows, np.array(scores)).tolist()


def test_the_highest_of_each_group() -> None:
    """Groups (1, 3), (2, 0) and (5, 5): numbers 1, 2 and, of equal ones the first, 4."""
    assert choose([[1, 3, 2, 0, 5, 5]], row(*["a."] * 6)) == [[1, 2, 4]]
    assert choose([[1, 3, 2, 0, 5, 6]], row(*["a."] * 6), n=3) == [[1, 5]]


def test_truncated_and_empty_ones_only_where_all_are() -> None:
    """Of (a:9, b.:1) b. is finished; of (c:2, d:3) neither is, so that d wins; of (blank:9, e.:1) e. has a text."""
    mixed = row("a", "b.", "c", "d", " ", "e.")
    scores = [[9, 1, 2, 3, 9, 1]]
    assert choose(scores, mixed) == [[1, 3, 5]]
    assert choose(scores, mixed, keep_unfinished=True) == [[0, 3, 5]]


def test_negative_scores_beside_unusable_ones() -> None:
    assert choose([[-5, 7]], row("a.", "b")) == [[0]]


@pytest.mark.parametrize("n", [2, 4, 7])
def test_the_bound_is_the_kl_of_the_highest_of_n_continuous_scores(n: int) -> None:
    """The density of the highest of n uniform numbers is n x^(n-1); its KL from the uniform one is the integral of
    n x^(n-1) log(n x^(n-1)) over [0, 1], here by the midpoint rule.
    """
    x = (np.arange(200_000) + 0.5) / 200_000
    density = n * x ** (n - 1)
    rule = BestOf(model="sft", n=n, judge="gold")
    assert rule.kl_bound == pytest.approx(float((density * np.log(density)).mean()), abs=1e-4)


def test_the_bound_holds_for_a_discrete_policy() -> None:
    """Two responses of probability 1/2: the better is chosen with 1 - 1/4; KL = 3/4 log 3/2 + 1/4 log 1/2 = 0.131."""
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl < BestOf(model="sft", n=2, judge="gold").kl_bound == pytest.approx(math.log(2) - 0.5)


def test_one_is_no_choice() -> None:
    with pytest.raises(ValueError, match="best of 1 .*at least 2"):
        BestOf(model="sft", n=1, judge="gold")


@pytest.mark.parametrize(
    ("rule", "judge", "named"),
    [
        (BestOf(model="ppo", n=4, judge="gold"), "sandbox", "'ppo'.* sft"),
        (BestOf(model="sft", n=4, judge="reward"), "sandbox", "'reward'.* gold"),
        (BestOf(model="sft", n=4, judge="gold"), "http://127.0.0.1:9/v1#m", "'gold'.* none"),
    ],
)
def test_unknown_models_and_judges_are_named(tmp_path, rule: BestOf, judge: str, named: str) -> None:
    runs = (Run(tmp_path, {}),)
    with pytest.raises(ValueError, match=named):
        Task(
            candidates=[Candidate("sft", runs), Candidate("best", runs, rule)],
            prompts=["p"],
            columns=[{}],
            judges=[Judge("gold", (judge,))],
            config=ResponseConfig(),
        )
