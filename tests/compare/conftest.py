"""Reports of made-up models, as ``align compare`` would write them."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from align.compare.candidates import COSTS
from align.compare.metrics import DEFAULT_METRICS
from align.evaluate.statistics import higher, interval, wins

Content = tuple[dict[str, Any], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def make_report() -> Callable[..., Content]:
    """A function that makes the content of report.json and the rows of samples.jsonl."""
    return _make


def _make(
    names: tuple[str, ...] = ("sft", "dpo", "ppo"),
    *,
    judges: tuple[str, ...] = ("gold", "reward"),
    prompts: int = 30,
    seeds: int = 1,
    n: int = 2,
    checkpoints: int = 4,
    cost: bool = True,
    scores: bool = True,
    best_of: bool = False,
    texts: bool = False,
    abilities: bool = False,
) -> Content:
    """Model number i is better than number i - 1 by 0.4 standard deviations of a response's score.

    Args:
        names: of the models, the baseline first.
        judges: their names.
        prompts: how many.
        seeds: how many.
        n: responses to each prompt.
        checkpoints: points of each run in the frontier; 0: no frontier.
        cost: whether the manifests tell it.
        scores: whether the judges give scores, or only compare.
        best_of: whether the last model is the best of 4 of the first.
        texts: whether the models have read ordinary texts.
        abilities: whether they were evaluated on tasks.
    """
    rng, words = np.random.default_rng(0), random.Random(0)
    shape = (seeds, prompts, n)
    found = {name: {judge: rng.normal(0.4 * i, 1, shape) for judge in judges} for i, name in enumerate(names)}
    lengths = {name: rng.integers(5, 60, shape) for name in names}
    rows = [
        _row(place, seed, found if scores else {}, lengths, words) for seed in range(seeds) for place in range(prompts)
    ]
    report = {
        "command": ["align", "compare", *(f"{name}=runs/{name}" for name in names), "--out", "a folder"],
        "schema_version": 3,
        "baseline": names[0],
        "seeds": seeds,
        "prompts": prompts,
        "responses": {"n": n, "seed": 0, "temperature": 1.0, "max_new_tokens": 96, "batch_size": 128, "device": "cpu"},
        "judges": [{"name": judge, "sources": ["sandbox"]} for judge in judges],
        "metrics": [
            {
                "name": of.name,
                "label": of.label,
                "meaning": of.meaning,
                "is_share": of.is_share,
                "is_column": of.is_column,
            }
            for of in DEFAULT_METRICS
        ],
        "models": {
            name: _model(i, name, found[name] if scores else {}, lengths[name], judges, cost=cost)
            for i, name in enumerate(names)
        },
        "pairs": [
            _pair(a, b, judge, found[a][judge], found[b][judge], scores=scores)
            for judge in judges
            for b, a in itertools.combinations(names, 2)
        ],
        "frontier": [
            _point(i, name, seed, step, judge, checkpoints)
            for i, name in enumerate(names)
            for seed in range(seeds)
            for step in range(checkpoints if i else min(1, checkpoints))
            for judge in (judges if scores else ())
        ],
        "settings": [
            {"setting": "model.init_args.beta", "values": {names[-1]: 0.1}},
            {"setting": "data.train", "values": {name: [f"{name}.jsonl", None] for name in names}},
        ],
        "texts": {"documents": 30, "bytes": 24_000} if texts else None,
        "abilities": _abilities(names) if abilities else [],
    }
    if texts:
        for i, model in enumerate(report["models"].values()):
            model["texts"] = _text_cost(i)
    if best_of:
        rule = {"model": names[0], "n": 4, "judge": judges[0], "keep_unfinished": False}
        best = report["models"][names[-1]]
        best |= {"best_of": rule, "stage": None, "step": None, "cost": None, "texts": None}
        best["kl"] = {"mean": 0.636, "ci95": [0.636, 0.636], "by": "bound"}
    return report, rows


_WORDS = (
    "a",
    "lantern",
    "fox",
    "harbour",
    "candle",
    "owl",
    "walked",
    "to",
    "the",
    "garden",
    "and",
    "found",
    "an",
    "old",
)


def _row(
    place: int,
    seed: int,
    scores: dict[str, dict[str, np.ndarray]],
    lengths: dict[str, np.ndarray],
    words: random.Random,
) -> dict[str, Any]:
    def response(i: int, name: str, k: int) -> dict[str, Any]:
        tokens = int(lengths[name][seed, place, k])
        return {
            "text": " ".join(words.choices(_WORDS, k=tokens)),
            "tokens": tokens,
            "finished": bool(k),
            "log_ratio": 0.5 * i,
            "rewards": {judge: float(of[seed, place, k]) for judge, of in scores.get(name, {}).items()},
        }

    return {
        "prompt": [{"role": "user", "content": f"Tell story number {place} about a {words.choice(_WORDS)}."}],
        "seed": seed,
        "responses": {
            name: [response(i, name, k) for k in range(of.shape[-1])] for i, (name, of) in enumerate(lengths.items())
        },
    }


def _model(
    i: int,
    name: str,
    scores: dict[str, np.ndarray],
    lengths: np.ndarray,
    judges: tuple[str, ...],
    *,
    cost: bool,
) -> dict[str, Any]:
    proxies = {
        judge: {"against": judges[0], "gain": 0.4 * i, "gain_against": 0.3 * i, "gap": 0.1 * i, "correlation": None}
        for judge in judges[1:]
        if scores
    }
    costs = dict.fromkeys(COSTS, 1234.5 * (i + 1))
    return {
        "runs": [f"runs/{name}/model"],
        "stage": "dpo" if i else None,
        "step": 100 if i else None,
        "best_of": None,
        "sampled_tokens": _estimate(interval(lengths.mean(-1))),
        "texts": None,
        "kl": {"mean": 0.5 * i, "ci95": [0.4 * i, 0.6 * i], "by": "text" if i == 2 else "tokens"},
        "length_quantiles": {"p10": 8.0, "p50": 30.0, "p90": 55.0},
        "metrics": {
            "Length": _estimate(interval(lengths.mean(-1))),
            "EOSRate": {"mean": 0.5, "ci95": [0.4, 0.6]},
            "Distinct1": {"mean": 0.1, "ci95": None},
            "Distinct2": {"mean": 0.4, "ci95": None},
            "DistinctResponses": {"mean": 1.0, "ci95": None},
            "SelfBLEU": {"mean": 0.2, "ci95": [0.1, 0.3]},
        },
        "rewards": {judge: _estimate(interval(values.mean(-1))) for judge, values in scores.items()},
        "cost": costs | {"reward_model": costs if i == 2 else None} if cost else None,
        "proxies": proxies,
    }


def _text_cost(i: int) -> dict[str, Any]:
    return {
        "bits_per_byte": {"mean": 1.1 + 0.01 * i, "ci95": [1.0 + 0.01 * i, 1.2 + 0.01 * i]},
        "perplexity": {"mean": 20.0 + i, "ci95": [18.0 + i, 22.0 + i]},
        "tokens": 5_000.0,
        "same_tokenizer": i != 2,
        "change": {"mean": 0.01 * i, "ci95": [0.005 * i, 0.015 * i]} if i else None,
        "verdict": "worse" if i else None,
    }


def _pair(
    a: str,
    b: str,
    judge: str,
    first: np.ndarray,
    second: np.ndarray,
    *,
    scores: bool,
) -> dict[str, Any]:
    rate = interval(wins(first, second))
    difference = interval(first.mean(-1) - second.mean(-1))
    sides = {None: None, 0: a, 1: b}
    better = sides[higher(rate, 0.5)]
    return {
        "a": a,
        "b": b,
        "judge": judge,
        "n": first.size,
        "win_rate": rate.mean,
        "ci95": [rate.low, rate.high],
        "better": better,
        "verdict": f"{better} wins more often" if better else "no difference shown",
        "length_controlled": _estimate(rate) if scores else None,
        "better_length_controlled": better if scores else None,
        "difference": _estimate(difference) if scores else None,
        "better_difference": sides[higher(difference, 0.0)] if scores else None,
    }


def _point(i: int, name: str, seed: int, step: int, judge: str, checkpoints: int) -> dict[str, Any]:
    last = step == checkpoints - 1 or not i
    kl, reward = (step + 1) * i * 0.6 + 0.1 * seed * i, 0.4 * i * (step + 1) ** 0.5 + 0.05 * seed
    return {
        "model": name,
        "seed": seed,
        "checkpoint": "model" if last else f"epoch=0-step={100 * step}.ckpt",
        "step": 100 * step if i else None,
        "judge": judge,
        "kl": kl,
        "kl_ci95": [kl * 0.9 - 0.01, kl * 1.1],
        "reward": reward,
        "ci95": [reward - 0.08, reward + 0.08],
    }


def _estimate(value: Any) -> dict[str, Any]:
    return {"mean": value.mean, "ci95": [value.low, value.high]}


def _abilities(names: tuple[str, ...]) -> list[dict[str, Any]]:
    value = {"mean": 0.5, "ci95": [0.4, 0.6]}
    models = {
        name: {"value": value, "change": {"mean": -0.1, "ci95": [-0.2, -0.05]}, "verdict": "worse"} for name in names
    }
    models[names[0]] = {"value": value, "change": None, "verdict": None}
    return [{"task": "arc_easy", "measure": "acc,none", "items": 100, "models": models}]
