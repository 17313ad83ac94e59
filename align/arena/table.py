"""Win-rates of an arena's models, pair by pair."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from align.arena.votes import Identity, Vote
from align.evaluate.statistics import higher, ratio_values, share_interval

_SHARES = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5}
"""What a vote counts for the left model's win-rate"""


def win_rates(models: Sequence[Identity], votes: Sequence[Vote]) -> Iterator[dict[str, Any]]:
    """A row for each pair of models: counts of votes, and the first one's win-rate with its 95% interval.

    A tie and two bad responses are half a win each. The interval is over distinct prompts, since votes on the same
    prompt are not independent.

    Args:
        models: in the order in which rows name them.
        votes: those on other models, or on other weights, are not counted.

    Yields:
        ``models`` (two names), ``votes``, ``wins`` (of each), ``ties``, ``both_bad``, ``prompts``, and if there are
        votes ``win_rate``, ``low``, ``high``; ``ahead`` is the name of the model whose advantage is shown, or None.
    """
    for first, second in itertools.combinations(models, 2):
        between = [vote for vote in votes if {side.identity for side in vote.sides} == {first, second}]
        # Of each vote: whether the first model was left, and what the first model gained.
        swapped = {"left": "right", "right": "left"}
        chosen = [vote.vote if vote.left.identity == first else swapped.get(vote.vote, vote.vote) for vote in between]
        row: dict[str, Any] = {
            "models": [first.name, second.name],
            "votes": len(between),
            "wins": [chosen.count("left"), chosen.count("right")],
            "ties": chosen.count("tie"),
            "both_bad": chosen.count("both_bad"),
            "prompts": 0,
            "ahead": None,
        }
        yield row | (_estimate(between, chosen, row["models"]) if between else {})


def _estimate(votes: Sequence[Vote], chosen: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for vote, choice in zip(votes, chosen, strict=True):
        by_prompt[json.dumps(vote.prompt, sort_keys=True)].append(_SHARES[choice])
    gained = np.array([[sum(shares) for shares in by_prompt.values()]])
    counts = np.array([[float(len(shares)) for shares in by_prompt.values()]])
    estimate = share_interval(ratio_values(gained, counts))
    ahead = higher(estimate, 0.5)
    return {
        "prompts": estimate.prompts,
        "win_rate": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "ahead": None if ahead is None else names[ahead],
    }
