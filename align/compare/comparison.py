"""A comparison from start to end: answers, scores, statistics, the report's content.

1. every model answers the same prompts from the same seeds;
2. every judge scores the answers, or compares them in pairs;
3. each model alone: rewards, KL to the baseline, length, endings, diversity, cost;
4. each pair of models: win-rate, length-controlled win-rate, difference, and a verdict;
5. the frontier: every checkpoint's reward against its KL.

Legend: S seeds, P prompts, N answers to a prompt.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.compare.answers import Advance, Answer, AnswerConfig, Answerer
from align.compare.diversity import diversity
from align.compare.endpoint import Endpoint, compare_pairs
from align.compare.entrants import Entrant, Point, check_entrants
from align.compare.judges import Judge, score
from align.compare.settings import costs, settings_diff
from align.compare.statistics import Estimate, interval, length_controlled_wins, share_interval, verdict, wins
from align.tokenizer.prompts import Prompt

SCHEMA_VERSION = 1
_DIGITS = 5

Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""(what is done, of how many) -> a context whose value is told how many more are done"""


@dataclass(frozen=True)
class Task:
    """What is compared, on what, by whom.

    Raises:
        ValueError: there is no prompt or no judge, or two judges share a name.
    """

    entrants: Sequence[Entrant]
    """The first is the baseline"""
    prompts: Sequence[Prompt]
    judges: Sequence[Judge]
    """The first is the yardstick that others are held against"""
    config: AnswerConfig
    frontier_n: int = 1
    """Answers of each checkpoint to each prompt; 0: no frontier"""

    def __post_init__(self) -> None:
        """Refuse what can't be compared."""
        seeds = check_entrants(self.entrants)
        if not self.prompts:
            raise ValueError("there are no prompts to answer")
        names = [judge.name for judge in self.judges]
        if not names:
            raise ValueError("there is no judge: give at least one")
        for judge in self.judges:
            if names.count(judge.name) > 1:
                raise ValueError(f"two judges are called {judge.name!r}: give each a name of its own (NAME=JUDGE)")
            if len(judge.sources) not in (1, seeds):
                raise ValueError(
                    f"judge {judge.name} has {len(judge.sources)} sources for {seeds} seeds: give 1 or {seeds}"
                )
        if self.frontier_n < 0:
            raise ValueError(f"frontier_n is {self.frontier_n}: it must be at least 0")

    @property
    def seeds(self) -> int:
        """``S``."""
        return check_entrants(self.entrants)

    def point(self, entrant: Entrant, seed: int) -> Point:
        """The weights that stand for an entrant under a seed."""
        return entrant.runs[seed % len(entrant.runs)].final


class Sampled(NamedTuple):
    """An entrant's answers and scores.

    Attributes:
        answers: ``S`` tables of ``P`` rows of ``N``.
        scores: ``[S, P, N]`` by judge; judges that compare have none.
    """

    answers: list[list[list[Answer]]]
    scores: dict[str, np.ndarray]

    def array(self, field: str) -> np.ndarray:
        """``[S, P, N]`` of a field of the answers."""
        return np.array([[[getattr(answer, field) for answer in row] for row in table] for table in self.answers])


def compare(task: Task, folder: Path, progress: Progress) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run a comparison.

    Args:
        task: what is compared.
        folder: of the logs: a comparison that is run again goes on from them.
        progress: shows how far it is.

    Returns:
        tuple: the content of report.json (docs/compare.md), and one row a prompt and seed with all answers.

    Raises:
        ValueError: a model, a checkpoint or a judge failed; the line names it.
    """
    answerer = Answerer(task.prompts, task.config, folder)
    sampled = {entrant.name: _sample(task, entrant, answerer, progress) for entrant in task.entrants}
    models = {entrant.name: _describe(task, entrant, sampled) for entrant in task.entrants}
    pairs = list(_pairs(task, sampled, folder, progress))
    report = {
        "schema_version": SCHEMA_VERSION,
        "baseline": task.entrants[0].name,
        "seeds": task.seeds,
        "prompts": len(task.prompts),
        "answers": asdict(task.config),
        "frontier_n": task.frontier_n,
        "judges": [{"name": judge.name, "sources": list(judge.sources)} for judge in task.judges],
        "models": models,
        "pairs": pairs,
        "frontier": list(_frontier(task, folder, progress)) if task.frontier_n else [],
        "settings": settings_diff(task.entrants),
    }
    return report, list(_rows(task, sampled))


def _sample(task: Task, entrant: Entrant, answerer: Answerer, progress: Progress) -> Sampled:
    tables = []
    for seed in range(task.seeds):
        with progress(f"{entrant.name} answers", len(task.prompts)) as advance:
            tables.append(answerer.answer(task.point(entrant, seed), task.point(task.entrants[0], seed), advance))
    scores = {
        judge.name: np.stack(
            [
                score(judge, seed, task.prompts, table, folder=answerer.folder, device=task.config.device)
                for seed, table in enumerate(tables)
            ]
        )
        for judge in task.judges
        if not judge.compares
    }
    return Sampled(tables, scores)


def _describe(task: Task, entrant: Entrant, sampled: dict[str, Sampled]) -> dict[str, Any]:
    own, baseline = sampled[entrant.name], sampled[task.entrants[0].name]
    lengths = own.array("tokens")
    quantiles = np.quantile(lengths, [0.1, 0.5, 0.9])
    texts = [[answer.text for answer in row] for table in own.answers for row in table]
    described = {
        "runs": [str(run.model) for run in entrant.runs],
        "stage": entrant.runs[0].manifest.get("stage"),
        "step": entrant.runs[0].manifest.get("step"),
        "kl": _estimate(interval(own.array("log_ratio").mean(-1))) | {"by": _kl_by(task, entrant)},
        "length": _estimate(interval(lengths.mean(-1)))
        | {f"p{p}": float(q) for p, q in zip((10, 50, 90), quantiles, strict=True)},
        "eos_rate": round(float(own.array("finished").mean()), _DIGITS),
        "diversity": {name: _rounded(value) for name, value in diversity(texts)._asdict().items()},
        "rewards": {name: _estimate(interval(scores.mean(-1))) for name, scores in own.scores.items()},
        "cost": costs(entrant),
    }
    described["proxies"] = _proxies(task, own, baseline)
    return described


def _kl_by(task: Task, entrant: Entrant) -> str:
    from align.tokenizer import Tokenizer

    places = [(task.point(entrant, seed).model, task.point(task.entrants[0], seed).model) for seed in range(task.seeds)]
    same = all(Tokenizer.load(a).fingerprint == Tokenizer.load(b).fingerprint for a, b in places)
    return "tokens" if same else "text"


def _proxies(task: Task, own: Sampled, baseline: Sampled) -> dict[str, Any]:
    """How far each other judge's gain over the baseline runs ahead of the first judge's."""
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
        for b, a in itertools.combinations([entrant.name for entrant in task.entrants], 2):
            if judge.compares:
                yield _compared(task, judge, a, b, sampled, folder, progress)
                continue
            first, second = sampled[a].scores[judge.name], sampled[b].scores[judge.name]
            lengths = sampled[a].array("tokens"), sampled[b].array("tokens")
            yield _pair(a, b, judge, share_interval(wins(first, second)), first.shape) | {
                "length_controlled": _estimate(length_controlled_wins(first, second, *lengths)),
                "difference": _estimate(interval(first.mean(-1) - second.mean(-1))),
            }


def _compared(
    task: Task, judge: Judge, a: str, b: str, sampled: dict[str, Sampled], folder: Path, progress: Progress
) -> dict[str, Any]:
    """A pair by a judge that compares: the first answer to each prompt of one against the other's."""
    found = []
    for seed in range(task.seeds):
        first, second = ([row[0] for row in sampled[name].answers[seed]] for name in (a, b))
        endpoint = Endpoint.parse(judge.sources[seed % len(judge.sources)])
        with progress(f"{judge.name} compares {a} and {b}", len(task.prompts)) as advance:
            found.append(compare_pairs(endpoint, task.prompts, first, second, folder=folder, advance=advance))
    values = np.stack(found)
    return _pair(a, b, judge, share_interval(values), (*values.shape, 1)) | {
        "length_controlled": None,
        "difference": None,
    }


def _pair(a: str, b: str, judge: Judge, win_rate: Estimate, shape: tuple[int, ...]) -> dict[str, Any]:
    better = verdict(win_rate)
    return {
        "a": a,
        "b": b,
        "judge": judge.name,
        "n": int(np.prod(shape)),
        "win_rate": round(win_rate.mean, _DIGITS),
        "ci95": [round(win_rate.low, _DIGITS), round(win_rate.high, _DIGITS)],
        "better": {"a": a, "b": b}.get(better),
        "verdict": better if better == "no difference shown" else f"{ {'a': a, 'b': b}[better] } is better",
    }


def _frontier(task: Task, folder: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Every checkpoint of every run, scored by every judge that scores."""
    answerer = Answerer(task.prompts, replace(task.config, n=task.frontier_n), folder)
    for entrant in task.entrants:
        for seed, run in enumerate(entrant.runs):
            baseline = task.point(task.entrants[0], seed)
            points = [baseline] if entrant is task.entrants[0] else run.points()
            with progress(f"{entrant.name}'s checkpoints answer", len(points) * len(task.prompts)) as advance:
                for point in points:
                    answers = answerer.answer(point, baseline, advance)
                    yield from _on_frontier(task, entrant, seed, point, answers, folder)


def _on_frontier(
    task: Task, entrant: Entrant, seed: int, point: Point, answers: list[list[Answer]], folder: Path
) -> Iterator[dict[str, Any]]:
    ratios = np.array([[answer.log_ratio for answer in row] for row in answers])
    kl = interval(ratios.mean(-1)[None])
    for judge in task.judges:
        if judge.compares:
            continue
        scores = score(judge, seed, task.prompts, answers, folder=folder, device=task.config.device)
        reward = interval(scores.mean(-1)[None])
        yield {
            "model": entrant.name,
            "seed": seed,
            "checkpoint": point.label,
            "step": point.step,
            "judge": judge.name,
            "kl": _rounded(kl.mean),
            "kl_ci95": [_rounded(kl.low), _rounded(kl.high)],
            "reward": _rounded(reward.mean),
            "ci95": [_rounded(reward.low), _rounded(reward.high)],
        }


def _rows(task: Task, sampled: dict[str, Sampled]) -> Iterator[dict[str, Any]]:
    """All answers, side by side."""
    for seed in range(task.seeds):
        for number, prompt in enumerate(task.prompts):
            yield {
                "prompt": prompt,
                "seed": seed,
                "answers": {
                    name: [
                        answer._asdict()
                        | {"rewards": {judge: float(s[seed, number, k]) for judge, s in of.scores.items()}}
                        for k, answer in enumerate(of.answers[seed][number])
                    ]
                    for name, of in sampled.items()
                },
            }


def _estimate(value: Estimate) -> dict[str, Any]:
    return {"mean": _rounded(value.mean), "ci95": [_rounded(value.low), _rounded(value.high)]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
