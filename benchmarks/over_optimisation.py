"""Draw proxy reward and gold reward of PPO runs against the square root of the KL, from metrics.csv.

align fit --config recipes/tiny/ppo.yaml --run runs/seed0 --trainer.default_root_dir runs/seed0/ppo-free \
    --trainer.max_epochs 60 --model.init_args.kl.kl_coef 0 --model.init_args.kl.stop_kl 1000 \
    --model.init_args.scoring.reward_clip 1000
python benchmarks/over_optimisation.py runs/seed0/ppo-free (and other seeds) --out docs/over_optimisation.svg

Each iteration is a point: means over its responses, drawn by the policy as it was before that iteration's update. The
distance is that of Gao et al. 2022 (equation 1): d = sqrt(KL(policy || SFT model)), nats of a whole response.
"""

import argparse
import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

METRICS = ("rollout/kl", "rollout/score", "rollout/gold")
END = 5
"""Iterations at each end whose mean counts as the beginning and as the end"""


def read(run: Path) -> np.ndarray:
    """``[iterations, 3]``: KL in nats per response, proxy in its standard deviations on SFT samples, gold in [0, 1]."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [[float(row[name]) for name in METRICS] for row in csv.DictReader(file) if row.get("rollout/gold")]
    if len(rows) < 3 * END:
        raise SystemExit(f"{run}: {len(rows)} iterations with rollout/gold, at least {3 * END} are needed")
    return np.array(rows)


def smooth(values: np.ndarray) -> np.ndarray:
    """Means over ``END`` neighbouring iterations."""
    return np.convolve(values, np.ones(END) / END, mode="valid")


def describe(run: Path, points: np.ndarray) -> dict[str, Any]:
    """The highest gold reward, and the last."""
    kl, proxy, gold = (smooth(column) for column in points.T)
    peak = int(gold.argmax())
    names = (("start", 0), ("gold_peak", peak), ("end", len(gold) - 1))
    parts = {
        name: {"kl": round(float(kl[at]), 2), "proxy": round(float(proxy[at]), 3), "gold": round(float(gold[at]), 4)}
        for name, at in names
    }
    return {"run": str(run), "iterations": len(points), **parts}


def draw(runs: Sequence[np.ndarray], out: Path) -> None:
    """Draw two panels with a common axis: the proxy reward, which is trained, and the gold reward."""
    import matplotlib

    matplotlib.use("svg" if out.suffix == ".svg" else "agg")
    matplotlib.rcParams["svg.hashsalt"] = "align"
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharex=True)
    titles = ("proxy: the reward model (std on SFT samples)", "gold: the truth")
    for axes, title, column in zip(panels, titles, (1, 2), strict=True):
        for number, points in enumerate(runs):
            root = np.sqrt(points[:, 0].clip(min=0))
            colour = f"C{number}"
            axes.plot(root, points[:, column], ".", ms=3, alpha=0.35, color=colour)
            axes.plot(smooth(root), smooth(points[:, column]), lw=1.5, color=colour, label=f"run {number}")
        axes.set(xlabel="sqrt(KL to the SFT model), nats per response", title=title)
        axes.grid(alpha=0.3)
    panels[1].legend()
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


def main() -> None:
    """Read, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of PPO with metrics.csv and rollout/gold")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.svg or .png)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    runs = [read(run) for run in args.runs]
    draw(runs, args.out)
    found = [describe(run, points) for run, points in zip(args.runs, runs, strict=True)]
    print("| run | gold: start | peak | end | sqrt(KL): peak | end | proxy: peak | end |")
    print("|---|---|---|---|---|---|---|---|")
    for row in found:
        start, peak, end = (row[name] for name in ("start", "gold_peak", "end"))
        cells = [
            *(f"{part['gold']:.3f}" for part in (start, peak, end)),
            *(f"{part['kl'] ** 0.5:.2f}" for part in (peak, end)),
            *(f"{part['proxy']:.2f}" for part in (peak, end)),
        ]
        print(f"| {row['run']} | {' | '.join(cells)} |")
    falls = [row["gold_peak"]["gold"] - row["end"]["gold"] for row in found]
    print(f"gold falls from its peak to the end by {statistics.mean(falls):.3f} on average")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
