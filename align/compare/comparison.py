"""A comparison from start to end: responses, scores, statistics, the report's content.

1. every model responds to the same prompts from the same seeds;
2. every judge scores the responses, or compares them in pairs;
3. of each model: rewards, KL to the baseline, comparison metrics, cost;
4. of each pair of models: win-rate, length-controlled win-rate and difference of the means, each with its verdict;
5. the frontier: every checkpoint's reward against its KL;
6. what alignment cost: each model's loss on ordinary documents, against the baseline's.

Legend: S seeds, P prompts, N responses to a prompt.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.compare.candidates import Candidate, Point, check_candidates, costs, settings_diff
from align.compare.endpoint import Endpoint, compare_pairs
from align.compare.judges import Judge, score
from align.compare.metrics import DEFAULT_METRICS, Metric, measured
from align.compare.respond import Advance, Response, ResponseConfig, Sampler
from align.compare.texts import logged_text_losses
from align.evaluate.statistics import (
    LEAST_PROMPTS,
    Estimate,
    higher,
    interval,
    length_controlled_wins,
    ratio_values,
    share_interval,
    wins,
)
from align.evaluate.text_loss import TextLoss
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import Columns, Prompt

SCHEMA_VERSION = 3
NO_DIFFERENCE = "no difference shown"
"""Verdict where an interval contains equality, or there are too few prompts"""
_DIGITS = 5

Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""(description, total) -> a context whose value is called with the number of further units done"""


@dataclass(frozen=True)
class Task:
    """The models, the prompts, the judges and the metrics of a comparison.

    Raises:
        ValueError: there is no prompt, two judges or two metrics share a name, or a best of N names a model or a judge
            that is not there.
    """

    candidates: Sequence[Candidate]
    """The first is the baseline"""
    prompts: Sequence[Prompt]
    columns: Sequence[Columns]
    """Of the prompts' records, as many as prompts: those that judges and metrics read"""
    judges: Sequence[Judge]
    """The first decides the headline, and the others' gains are compared with its; without any there are no verdicts"""
    config: ResponseConfig
    frontier_n: int = 1
    """Responses of each checkpoint to each prompt; 0: no frontier"""
    metrics: Sequence[Metric] = DEFAULT_METRICS
    """Of each model's responses"""
    texts: Sequence[str] = ()
    """Ordinary documents whose loss shows what alignment cost; may be empty"""

    def __post_init__(self) -> None:
        """Reject an invalid comparison."""
        seeds = check_candidates(self.candidates)
        if not self.prompts:
            raise ValueError("there are no prompts to respond to")
        if len(self.columns) != len(self.prompts):
            raise ValueError(f"there are {len(self.columns)} records of columns for {len(self.prompts)} prompts")
        names = [judge.name for judge in self.judges]
        for judge in self.judges:
            if names.count(judge.name) > 1:
                raise ValueError(f"two judges are called {judge.name!r}: give each its own name (NAME=JUDGE)")
            if len(judge.sources) not in (1, seeds):
                raise ValueError(
                    f"judge {judge.name} has {len(judge.sources)} sources for {seeds} seeds: give 1 or {seeds}"
                )
        measured_names = [metric.name for metric in self.metrics]
        for name in measured_names:
            if measured_names.count(name) > 1:
                raise ValueError(f"two metrics are called {name!r}: give the class a name of its own")
        for candidate in self.candidates:
            self._check_best_of(candidate)
        if self.frontier_n < 0:
            raise ValueError(f"frontier_n is {self.frontier_n}: it must be at least 0")

    def _check_best_of(self, candidate: Candidate) -> None:
        rule = candidate.best_of
        if rule is None:
            return
        sampled = [of.name for of in self.candidates if of.best_of is None]
        if candidate is self.candidates[0]:
            raise ValueError(f"{candidate.name} is the best of {rule.n}, and no baseline: name a model first")
        if rule.model not in sampled:
            raise ValueError(f"{candidate.name} samples {rule.model!r}, which is none of {', '.join(sampled)}")
        scoring = [judge.name for judge in self.judges if not judge.compares]
        if rule.judge not in scoring:
            raise ValueError(
                f"{candidate.name} is chosen by {rule.judge!r}, which is none of the judges that score: "
                f"{', '.join(scoring) or 'none'}"
            )

    @property
    def seeds(self) -> int:
        """``S``."""
        return check_candidates(self.candidates)

    def point(self, candidate: Candidate, seed: int) -> Point:
        """The weights of a candidate under a seed."""
        return candidate.runs[seed % len(candidate.runs)].final

    def same_tokenizer(self, a: Candidate, b: Candidate) -> bool:
        """Whether two candidates have the same tokenizer under every seed."""
        return all(
            Tokenizer.load(self.point(a, seed).model).fingerprint
            == Tokenizer.load(self.point(b, seed).model).fingerprint
            for seed in range(self.seeds)
        )


class Sampled(NamedTuple):
    """A candidate's responses and scores.

    Attributes:
        responses: ``S`` tables of ``P`` rows of ``N``.
        scores: judge -> ``[S, P, N]``; a judge that compares has none.
        drawn: ``[S, P, N]`` tokens that were sampled for each response: of the best of several, the tokens of all.
    """

    responses: list[list[list[Response]]]
    scores: dict[str, np.ndarray]
    drawn: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """``[S, P, N]`` tokens of the responses."""
        return _array(self.responses, lambda response: response.tokens)

    @property
    def letters(self) -> np.ndarray:
        """``[S, P, N]`` characters of the responses."""
        return _array(self.responses, lambda response: len(response.text))

    @property
    def log_ratios(self) -> np.ndarray:
        """``[S, P, N]`` log-ratios to the baseline, nats; NaN where there is none."""
        ratios = _array(self.responses, lambda response: response.log_ratio)
        return ratios.astype(np.float64)


def _array(responses: list[list[list[Response]]], of: Callable[[Response], Any]) -> np.ndarray:
    return np.array([[[of(response) for response in row] for row in table] for table in responses])


def compare(task: Task, folder: Path, progress: Progress) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run a comparison.

    Args:
        task: what is compared.
        folder: of the logs, from which an interrupted comparison resumes.
        progress: shows progress.

    Returns:
        tuple: the content of report.json (docs/compare.md), and one row per prompt and seed with all responses.

    Raises:
        ValueError: a model, a checkpoint or a judge failed; the line names it.
    """
    sampler = Sampler(task.prompts, task.config, folder)
    sampled = {candidate.name: _sample(task, candidate, sampler, progress) for candidate in task.candidates}
    models = {candidate.name: _describe(task, candidate, sampled) for candidate in task.candidates}
    for name, described in _text_costs(task, folder, progress).items():
        models[name]["texts"] = described
    pairs = list(_pairs(task, sampled, folder, progress))
    report = {
        "schema_version": SCHEMA_VERSION,
        "baseline": task.candidates[0].name,
        "seeds": task.seeds,
        "prompts": len(task.prompts),
        "responses": asdict(task.config),
        "frontier_n": task.frontier_n,
        "metrics": [
            {
                "name": of.name,
                "label": of.label,
                "meaning": of.meaning,
                "is_share": of.is_share,
                "is_column": of.is_column,
            }
            for of in task.metrics
        ],
        "judges": [{"name": judge.name, "sources": list(judge.sources)} for judge in task.judges],
        "models": models,
        "pairs": pairs,
        "frontier": list(_frontier(task, sampled, folder, progress)) if task.frontier_n else [],
        "texts": {"documents": len(task.texts), "bytes": sum(len(text.encode()) for text in task.texts)}
        if task.texts
        else None,
        "abilities": [],
        "settings": settings_diff(task.candidates),
    }
    return report, list(_rows(task, sampled))


def _sample(task: Task, candidate: Candidate, sampler: Sampler, progress: Progress) -> Sampled:
    rule = candidate.best_of
    if rule is None:
        tables = _respond(task, candidate, sampler, progress)
        drawn = _array(tables, lambda response: response.tokens)
    else:
        # The models' own responses are the first n; these come after them.
        config = replace(task.config, n=task.config.n * rule.n)
        choice = Sampler(task.prompts, config, sampler.folder, first=task.config.n)
        every = _respond(task, candidate, choice, progress)
        judge = next(judge for judge in task.judges if judge.name == rule.judge)
        chosen = [
            rule.choose(table, _score(task, judge, seed, table, sampler.folder)) for seed, table in enumerate(every)
        ]
        tables = [
            [[row[k] for k in numbers] for row, numbers in zip(table, of, strict=True)]
            for table, of in zip(every, chosen, strict=True)
        ]
        tokens = _array(every, lambda response: response.tokens)
        drawn = tokens.reshape(*tokens.shape[:2], -1, rule.n).sum(-1)
    scores = {
        judge.name: np.stack([_score(task, judge, seed, table, sampler.folder) for seed, table in enumerate(tables)])
        for judge in task.judges
        if not judge.compares
    }
    return Sampled(tables, scores, drawn)


def _respond(task: Task, candidate: Candidate, sampler: Sampler, progress: Progress) -> list[list[list[Response]]]:
    """``S`` tables of responses."""
    tables = []
    for seed in range(task.seeds):
        with progress(f"{candidate.name} responds", len(task.prompts)) as advance:
            tables.append(sampler.sample(task.point(candidate, seed), task.point(task.candidates[0], seed), advance))
    return tables


def _score(task: Task, judge: Judge, seed: int, table: Sequence[Sequence[Response]], folder: Path) -> np.ndarray:
    return score(judge, seed, task.prompts, table, columns=task.columns, folder=folder, device=task.config.device)


def _describe(task: Task, candidate: Candidate, sampled: dict[str, Sampled]) -> dict[str, Any]:
    own, baseline = sampled[candidate.name], sampled[task.candidates[0].name]
    quantiles = np.quantile(own.tokens, [0.1, 0.5, 0.9])
    described = {
        "runs": [str(run.model) for run in candidate.runs],
        "stage": candidate.runs[0].manifest.get("stage"),
        "step": candidate.runs[0].manifest.get("step"),
        "best_of": candidate.best_of and asdict(candidate.best_of),
        "sampled_tokens": _estimate(interval(own.drawn.mean(-1))),
        "kl": _kl(task, candidate, own),
        "length_quantiles": {f"p{p}": float(q) for p, q in zip((10, 50, 90), quantiles, strict=True)},
        "metrics": {metric.name: _measure(metric, task, own.responses) for metric in task.metrics},
        "rewards": {name: _estimate(interval(scores.mean(-1))) for name, scores in own.scores.items()},
        "cost": costs(candidate),
        "texts": None,
    }
    described["proxies"] = _proxies(task, own, baseline)
    return described


def _measure(metric: Metric, task: Task, responses: Sequence[Sequence[Sequence[Response]]]) -> dict[str, Any] | None:
    """A metric over all seeds, without an interval if it gives one number per seed."""
    found = [measured(metric, task.prompts, table, task.columns) for table in responses]
    by_seed = [values for values in found if values is not None]
    if not by_seed:
        return None
    values = np.stack(by_seed)
    if values.ndim == 1:
        return {"mean": _rounded(float(values.mean())), "ci95": None}
    return _estimate((share_interval if metric.is_share else interval)(values))


def _kl(task: Task, candidate: Candidate, own: Sampled) -> dict[str, Any]:
    """The KL to the baseline, what it is based on, and no number if a response does not fit the baseline's context."""
    ratios = own.log_ratios.mean(-1)
    if not np.isfinite(ratios).all():
        return {"mean": None, "ci95": None, "by": "not comparable"}
    rule = candidate.best_of
    if rule is not None:
        # KL(best || baseline) = KL(best || sampled model) + E_best[log sampled model - log baseline].
        return _estimate(interval(ratios + rule.kl_bound)) | {"by": "bound"}
    by = "tokens" if task.same_tokenizer(candidate, task.candidates[0]) else "text"
    return _estimate(interval(ratios)) | {"by": by}


def _text_costs(task: Task, folder: Path, progress: Progress) -> dict[str, dict[str, Any]]:
    """What each model with weights of its own loses on the texts, and how much more than the baseline."""
    if not task.texts:
        return {}
    baseline, found = task.candidates[0], {}
    losses = {
        candidate.name: _text_losses(task, candidate, folder, progress)
        for candidate in task.candidates
        if candidate.best_of is None
    }
    bits = {name: ratio_values(of["nats"] / np.log(2), of["bytes"]) for name, of in losses.items()}
    for candidate in task.candidates:
        if candidate.best_of is not None:
            continue
        of = losses[candidate.name]
        change = None if candidate is baseline else interval(bits[candidate.name] - bits[baseline.name])
        worse = change and higher(change, 0.0)
        found[candidate.name] = {
            "bits_per_byte": _estimate(interval(bits[candidate.name])),
            "perplexity": _estimate(_exponential(interval(ratio_values(of["nats"], of["tokens"])))),
            "tokens": float(of["tokens"].sum(-1).mean()),
            "same_tokenizer": task.same_tokenizer(candidate, baseline),
            "change": change and _estimate(change),
            "verdict": change and (NO_DIFFERENCE if worse is None else ("worse", "better")[worse]),
        }
    return found


def _exponential(value: Estimate) -> Estimate:
    mean, low, high = (math.exp(nats) for nats in value[:3])
    return value._replace(mean=mean, low=low, high=high)


def _text_losses(task: Task, candidate: Candidate, folder: Path, progress: Progress) -> dict[str, np.ndarray]:
    """Field of ``TextLoss`` -> ``[S, P]``."""
    tables = []
    for seed in range(task.seeds):
        with progress(f"{candidate.name} reads the texts", len(task.texts)) as advance:
            point = task.point(candidate, seed)
            tables.append(
                logged_text_losses(point, task.texts, folder=folder, device=task.config.device, advance=advance)
            )
    return {
        field: np.array([[getattr(loss, field) for loss in table] for table in tables], dtype=np.float64)
        for field in TextLoss._fields
    }


def _proxies(task: Task, own: Sampled, baseline: Sampled) -> dict[str, Any]:
    """How much each other judge's gain over the baseline exceeds the first judge's."""
    scoring = [judge.name for judge in task.judges if not judge.compares]
    found = {}
    for name in scoring[1:]:
        gains = [
            float((own.scores[judge].mean() - baseline.scores[judge].mean()) / (baseline.scores[judge].std() or 1.0))
            for judge in (name, scoring[0])
        ]
        a, b = own.scores[name].ravel(), own.scores[scoring[0]].ravel()
        correlation = float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else None
        found[name] = {
            "against": scoring[0],
            "gain": _rounded(gains[0]),
            "gain_against": _rounded(gains[1]),
            "gap": _rounded(gains[0] - gains[1]),
            "correlation": _rounded(correlation),
        }
    return found


def _pairs(task: Task, sampled: dict[str, Sampled], folder: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Each later model against each earlier one, by each judge."""
    for judge in task.judges:
        for earlier, later in itertools.combinations(task.candidates, 2):
            a, b = later.name, earlier.name
            if judge.compares:
                yield _compared(task, judge, a, b, sampled, folder, progress)
                continue
            first, second = sampled[a].scores[judge.name], sampled[b].scores[judge.name]
            # A token of one tokenizer is no measure for another's.
            field = "tokens" if task.same_tokenizer(later, earlier) else "letters"
            lengths = getattr(sampled[a], field), getattr(sampled[b], field)
            yield _pair(
                (a, b),
                judge,
                first.size,
                share_interval(wins(first, second)),
                # A regression on a few prompts fits them, and its interval is too narrow.
                length_controlled=length_controlled_wins(first, second, *lengths)
                if len(task.prompts) >= LEAST_PROMPTS
                else None,
                difference=interval(first.mean(-1) - second.mean(-1)),
            )


def _compared(
    task: Task, judge: Judge, a: str, b: str, sampled: dict[str, Sampled], folder: Path, progress: Progress
) -> dict[str, Any]:
    """A pair by a judge that compares: the first response to each prompt, one model against the other."""
    found = []
    for seed in range(task.seeds):
        first, second = ([row[0] for row in sampled[name].responses[seed]] for name in (a, b))
        endpoint = Endpoint.parse(judge.sources[seed % len(judge.sources)])
        with progress(f"{judge.name} compares {a} and {b}", len(task.prompts)) as advance:
            found.append(compare_pairs(endpoint, task.prompts, first, second, folder=folder, advance=advance))
    values = np.stack(found)
    return _pair((a, b), judge, values.size, share_interval(values))


def _pair(
    names: tuple[str, str],
    judge: Judge,
    n: int,
    win_rate: Estimate,
    *,
    length_controlled: Estimate | None = None,
    difference: Estimate | None = None,
) -> dict[str, Any]:
    """A pair by a judge; each measure has its own verdict, as they may differ."""
    better = _winner(names, win_rate, 0.5)
    at_equal_length, by_difference = _winner(names, length_controlled, 0.5), _winner(names, difference, 0.0)
    return {
        "a": names[0],
        "b": names[1],
        "judge": judge.name,
        "n": n,
        "win_rate": _rounded(win_rate.mean),
        "ci95": [_rounded(win_rate.low), _rounded(win_rate.high)],
        "better": better,
        "verdict": f"{better} wins more often" if better else NO_DIFFERENCE,
        "length_controlled": length_controlled and _estimate(length_controlled),
        "better_length_controlled": at_equal_length,
        "verdict_length_controlled": length_controlled
        and (f"{at_equal_length} wins more often at equal length" if at_equal_length else NO_DIFFERENCE),
        "difference": difference and _estimate(difference),
        "better_difference": by_difference,
        "verdict_difference": difference and (f"{by_difference} scores higher" if by_difference else NO_DIFFERENCE),
    }


def _winner(names: tuple[str, str], estimate: Estimate | None, even: float) -> str | None:
    side = None if estimate is None else higher(estimate, even)
    return None if side is None else names[side]


def _frontier(task: Task, sampled: dict[str, Sampled], folder: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Every checkpoint of every run with a KL, by every judge that gives scores; the best of N is one point."""
    if all(judge.compares for judge in task.judges):
        return
    sampler = Sampler(task.prompts, replace(task.config, n=task.frontier_n), folder)
    for candidate in task.candidates:
        if candidate.best_of is not None:
            yield from _best_on_frontier(task, candidate, sampled[candidate.name])
            continue
        for seed, run in enumerate(candidate.runs):
            baseline = task.point(task.candidates[0], seed)
            points = [baseline] if candidate is task.candidates[0] else run.points()
            with progress(f"{candidate.name}'s checkpoints respond", len(points) * len(task.prompts)) as advance:
                for point in points:
                    responses = sampler.sample(point, baseline, advance)
                    yield from _on_frontier(task, candidate, seed, point, responses, folder)


def _on_frontier(
    task: Task, candidate: Candidate, seed: int, point: Point, responses: list[list[Response]], folder: Path
) -> Iterator[dict[str, Any]]:
    ratios = np.array([[response.log_ratio for response in row] for row in responses], dtype=np.float64)
    if not np.isfinite(ratios).all():
        return
    kl = interval(ratios.mean(-1)[None])
    for judge in task.judges:
        if not judge.compares:
            reward = interval(_score(task, judge, seed, responses, folder).mean(-1)[None])
            yield _frontier_point(candidate, seed, judge.name, kl, reward, point=point)


def _best_on_frontier(task: Task, candidate: Candidate, own: Sampled) -> Iterator[dict[str, Any]]:
    """The best of N at the bound of its KL, from the responses of the tables."""
    rule = candidate.best_of
    assert rule is not None
    for seed in range(task.seeds):
        ratios = own.log_ratios[seed].mean(-1)
        if np.isfinite(ratios).all():
            kl = interval(ratios[None] + rule.kl_bound)
            for judge, scores in own.scores.items():
                yield _frontier_point(candidate, seed, judge, kl, interval(scores[seed].mean(-1)[None]))


def _frontier_point(
    candidate: Candidate, seed: int, judge: str, kl: Estimate, reward: Estimate, *, point: Point | None = None
) -> dict[str, Any]:
    """A point; None stands for the best of N."""
    return {
        "model": candidate.name,
        "seed": seed,
        "checkpoint": f"best of {candidate.best_of.n}" if candidate.best_of else point and point.label,
        "step": point and point.step,
        "judge": judge,
        "kl": _rounded(kl.mean),
        "kl_ci95": [_rounded(kl.low), _rounded(kl.high)],
        "reward": _rounded(reward.mean),
        "ci95": [_rounded(reward.low), _rounded(reward.high)],
    }


def _rows(task: Task, sampled: dict[str, Sampled]) -> Iterator[dict[str, Any]]:
    """All responses to each prompt, side by side."""
    for seed in range(task.seeds):
        for number, prompt in enumerate(task.prompts):
            yield {
                "prompt": prompt,
                "seed": seed,
                "responses": {
                    name: [
                        response._asdict()
                        | {"rewards": {judge: float(s[seed, number, k]) for judge, s in of.scores.items()}}
                        for k, response in enumerate(of.responses[seed][number])
                    ]
                    for name, of in sampled.items()
                },
            }


def _estimate(value: Estimate) -> dict[str, Any]:
    return {"mean": _rounded(value.mean), "ci95": [_rounded(value.low), _rounded(value.high)]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
