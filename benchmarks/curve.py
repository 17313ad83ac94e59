"""Draw a run's loss against its optimizer steps, from metrics.csv.

python benchmarks/curve.py runs/shakespeare/pretrain --out docs/shakespeare.svg
"""

import argparse
import csv
import math
from pathlib import Path


def series(rows: list[dict[str, str]], metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column."""
    found = [(int(row["step"]) + 1, float(row[metric])) for row in rows if row.get(metric)]
    return [step for step, _ in found], [value for _, value in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder with metrics.csv")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.svg or .png)")
    args = parser.parse_args()
    with (args.run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps, bits = series(rows, "val/bits_per_byte")
    _, losses = series(rows, "val/loss")
    # No bytes are counted in training: bytes per token of the validation text convert its loss into nats per byte.
    bytes_per_token = losses[-1] / (bits[-1] * math.log(2))
    train_steps, train = series(rows, "train/loss")

    import matplotlib

    matplotlib.use("svg" if args.out.suffix == ".svg" else "agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(train_steps, [value / bytes_per_token for value in train], lw=0.6, alpha=0.6, label="train, one batch")
    axes.plot(steps, [value * math.log(2) for value in bits], marker="o", label="validation")
    axes.set(xlabel="optimizer steps", ylabel="nats per byte", ylim=(1.0, 2.2))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(args.out, metadata={"Date": None} if args.out.suffix == ".svg" else None)
    best = min(range(len(bits)), key=bits.__getitem__)
    print(f"best validation: {bits[best] * math.log(2):.4f} nats per byte, {bits[best]:.4f} bits, step {steps[best]}")


if __name__ == "__main__":
    main()
