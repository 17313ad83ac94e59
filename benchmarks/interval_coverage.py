"""How often the 95% intervals of `align compare` cover the truth, on simulated models whose win-rate is known.

python benchmarks/interval_coverage.py --out benchmarks/results/interval_coverage.json

With several seeds, ours is compared with the plain hierarchical bootstrap (seeds and prompts drawn with replacement).
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from scipy import stats

from align.evaluate.statistics import interval, wins

# seeds, prompts, responses to a prompt, standard deviation of a seed's effect (a response's is 1)
CASES = [
    (1, 40, 1, 0.0),
    (1, 100, 4, 0.0),
    (1, 200, 4, 0.0),
    (2, 200, 4, 0.1),
    (3, 200, 4, 0.0),
    (3, 200, 4, 0.05),
    (3, 200, 4, 0.1),
    (3, 200, 4, 0.3),
    (5, 200, 4, 0.1),
]
EFFECT = 0.3


def simulate(
    rng: np.random.Generator, seeds: int, prompts: int, n: int, of_seed: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two models, with random effects of prompt, prompt x model, seed and response."""
    difficulty, suits = rng.normal(0, 0.3, prompts), rng.normal(0, 0.3, prompts)
    shape = (seeds, prompts, n)
    a = EFFECT + (difficulty + suits)[None, :, None] + rng.normal(0, of_seed, (seeds, 1, 1)) + rng.normal(size=shape)
    b = difficulty[None, :, None] + rng.normal(0, of_seed, (seeds, 1, 1)) + rng.normal(size=shape)
    return a, b


def ours(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    estimate = interval(values)
    return estimate.low, estimate.high


def bootstrap(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    seeds, prompts = values.shape
    drawn = [values[rng.integers(0, seeds, seeds)][:, rng.integers(0, prompts, prompts)].mean() for _ in range(400)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def coverage(method: Callable[..., tuple[float, float]], case: tuple[int, int, int, float], runs: int) -> list[float]:
    """Share of the win-rate's intervals that contain the true value, and their mean width."""
    of_seed = case[3]
    truth = stats.norm.cdf(EFFECT / np.sqrt(0.09 + 2 * of_seed**2 + 2))
    rng, held, width = np.random.default_rng(0), 0, 0.0
    for _ in range(runs):
        low, high = method(wins(*simulate(rng, *case)), np.random.default_rng(1))
        held += low <= truth <= high
        width += high - low
    return [held / runs, width / runs]


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="simulated comparisons per case (default: 1000)")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args()
    started, rows = time.perf_counter(), []
    print("| seeds | prompts | answers | a seed's luck, std | coverage | width | bootstrap's coverage |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        held, width = coverage(ours, case, args.runs)
        plain = coverage(bootstrap, case, args.runs)[0] if case[0] > 1 else None
        rows.append({"case": case, "coverage": held, "width": width, "bootstrap_coverage": plain})
        shown = "the same" if plain is None else f"{plain:.1%}"
        print(f"| {case[0]} | {case[1]} | {case[2]} | {case[3]} | {held:.1%} | {width:.3f} | {shown} |", flush=True)
    if args.out:
        about = {
            "date": str(date.today()),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "runs": args.runs,
            "seconds": round(time.perf_counter() - started, 1),
        }
        args.out.write_text(json.dumps({"about": about, "cases": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
