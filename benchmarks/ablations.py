"""Compare the variants of the ablations: a Markdown table and a figure for each, from metrics.csv and manifests.

align run recipes/ablations/norm.yaml --out runs/ablations      (and the other pipelines of that folder)
python benchmarks/ablations.py runs/ablations --out docs/ablations

Tables go to stdout, figures to OUT/NAME.svg; an ablation that has not finished is left out, which stderr says. Means
over three seeds have 95% t-intervals, which are 2.5 standard deviations wide on each side. Differences are paired over
seeds, since runs of one seed read the same batches (between tokenizers: the same documents in another order).

Legend: S seeds, P validations of a run.
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SEEDS = (0, 1, 2)
T_QUANTILE = 0.95 / math.sqrt(2 * 0.975 * 0.025)
"""97.5% quantile of Student's t with two degrees of freedom: (2 p - 1) / sqrt(2 p (1 - p))"""
TOLERANCE = 0.01
"""Share by which parameters and tokens of the variants may differ"""


class Variant(NamedTuple):
    """One side of an ablation.

    Attributes:
        label: in the table and the figure.
        folder: its runs are FOLDER/seed0 to seed2.
        color: index into the figure's colours.
        dashed: how its curve is drawn.
    """

    label: str
    folder: str
    color: int
    dashed: bool = False


class Ablation(NamedTuple):
    """A question and the variants that answer it.

    Attributes:
        title: above the table.
        variants: the first is the one that the others are compared with.
        of_tokens: whether the loss per token can be compared; not between tokenizers.
        longer: folders of the variants that are validated on rows of twice the training context too.
    """

    title: str
    variants: tuple[Variant, ...]
    of_tokens: bool = True
    longer: tuple[str, ...] = ()


ABLATIONS = {
    "norm_placement": Ablation(
        "Pre-LN against Post-LN",
        (
            Variant("Pre-LN, warm-up", "pre-warmup30", 0),
            Variant("Pre-LN, no warm-up", "pre-warmup0", 0, dashed=True),
            Variant("Post-LN, warm-up", "post-warmup30", 1),
            Variant("Post-LN, no warm-up", "post-warmup0", 1, dashed=True),
        ),
    ),
    "positions": Ablation(
        "RoPE, learned and sinusoidal positions",
        (
            Variant("RoPE", "baseline", 0),
            Variant("learned", "learned", 1),
            Variant("sinusoidal", "sinusoidal", 2),
        ),
        longer=("baseline", "sinusoidal"),
    ),
    "feed_forward": Ablation("SwiGLU against GELU", (Variant("SwiGLU", "baseline", 0), Variant("GELU", "gelu", 1))),
    "norm": Ablation(
        "RMSNorm against LayerNorm", (Variant("RMSNorm", "baseline", 0), Variant("LayerNorm", "layernorm", 1))
    ),
    "optimizer": Ablation(
        "AdamW against Muon",
        (
            Variant("AdamW, 2e-3", "baseline", 1),
            Variant("AdamW, 7e-4", "adamw-lr0.0007", 0),
            Variant("AdamW, 6e-3", "adamw-lr0.006", 2),
            Variant("Muon, 2e-3", "muon-lr0.002", 1, dashed=True),
            Variant("Muon, 7e-4", "muon-lr0.0007", 0, dashed=True),
            Variant("Muon, 6e-3", "muon-lr0.006", 2, dashed=True),
        ),
    ),
    "vocabulary": Ablation(
        "Tokenizers of 384, 768 and 1024 tokens",
        (
            Variant("768 tokens", "baseline", 0),
            Variant("384 tokens", "vocabulary-384", 1),
            Variant("1024 tokens", "vocabulary-1024", 2),
        ),
        of_tokens=False,
    ),
    "raw_and_clean": Ablation(
        "Cleaned text against raw text", (Variant("cleaned", "on_clean", 0), Variant("raw", "on_raw", 1))
    ),
}
"""By the name of the pipeline in recipes/ablations, or of recipes/corpus/raw_and_clean.yaml"""


class Runs(NamedTuple):
    """What the runs of a variant recorded.

    Attributes:
        parameters: of the network.
        tokens: trained on, by each run.
        steps: ``[P]`` optimizer steps before each validation.
        losses: ``[S]`` nats per token at the last validation.
        bits: ``[S, P]`` bits per byte.
        longer: ``[S]`` bits per byte of the final models on rows of twice the training context; None: not validated.
    """

    parameters: int
    tokens: int
    steps: np.ndarray
    losses: np.ndarray
    bits: np.ndarray
    longer: np.ndarray | None


def validations(file: Path) -> np.ndarray:
    """``[P, 3]``: optimizer steps, nats per token and bits per byte of each validation in a metrics.csv.

    A row's step is the index of the last one before it; the validation before training has that of the first, 0.
    """
    with file.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val/bits_per_byte")]
    if not rows:
        raise SystemExit(f"{file}: no row has val/bits_per_byte")
    columns = [[float(row[name]) for name in ("step", "val/loss", "val/bits_per_byte")] for row in rows]
    return np.array([[step and step + 1, loss, bits] for step, loss, bits in columns])


def read(root: Path, variant: Variant, *, longer: bool) -> Runs:
    """The runs of a variant.

    Raises:
        FileNotFoundError: a run has not finished.
        SystemExit: the seeds differ in more than their random numbers.
    """
    folders = [root / variant.folder / f"seed{seed}" for seed in SEEDS]
    manifests = [json.loads((folder / "model/align.json").read_text()) for folder in folders]
    curves = [validations(folder / "metrics.csv") for folder in folders]
    facts = {_size(manifest) for manifest in manifests}
    if len(facts) > 1 or len({tuple(curve[:, 0]) for curve in curves}) > 1:
        raise SystemExit(f"{root / variant.folder}: parameters, tokens or validations differ between seeds: {facts}")
    (parameters, tokens), stacked = facts.pop(), np.stack(curves)
    files = [root / "longer" / variant.folder / f"seed{seed}/validate/metrics.csv" for seed in SEEDS]
    ends = np.array([validations(file)[-1, 2] for file in files]) if longer else None
    return Runs(parameters, tokens, stacked[0, :, 0], stacked[:, -1, 1], stacked[:, :, 2], ends)


def _size(manifest: dict[str, Any]) -> tuple[int, int]:
    """Parameters of the network and tokens trained on."""
    from align.model import GPT, GPTConfig
    from align.model.meta import built_without_memory

    with built_without_memory():
        network = GPT(GPTConfig.from_dict(manifest["recipe"]["model"]["init_args"]["gpt"]))
    return network.num_parameters(), int(manifest["cost"]["tokens_trained"])


def check_matched(name: str, runs: Sequence[Runs]) -> None:
    """Refuse variants that differ in more than the question.

    Raises:
        SystemExit: parameters or tokens differ by more than ``TOLERANCE``, or the numbers of steps differ.
    """
    for field in ("parameters", "tokens"):
        values = [getattr(one, field) for one in runs]
        if max(values) > (1 + TOLERANCE) * min(values):
            raise SystemExit(f"{name}: {field} of the variants are {values}; they may differ by {TOLERANCE:.0%}")
    if len(steps := {one.steps[-1] for one in runs}) > 1:
        raise SystemExit(f"{name}: the variants ended after different numbers of steps, {sorted(steps)}")


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over three seeds and half of its 95% interval, t s / sqrt(3).

    Args:
        values: ``[3, ...]``.

    Returns:
        tuple: ``[...]`` each.
    """
    return values.mean(0), T_QUANTILE * values.std(0, ddof=1) / math.sqrt(len(values))


def table(ablation: Ablation, runs: Sequence[Runs]) -> str:
    """The Markdown table of an ablation; the first variant is what the others are compared with."""
    heads = ["variant", "parameters", "tokens"]
    heads += ["nats per token"] if ablation.of_tokens else []
    heads += ["bits per byte", "difference"]
    heads += ["bits per byte, rows twice as long"] if ablation.longer else []
    lines = [heads, ["---"] * len(heads)]
    for variant, one in zip(ablation.variants, runs, strict=True):
        cells = [variant.label, f"{one.parameters:,}", f"{one.tokens:,}"]
        cells += [_cell(one.losses)] if ablation.of_tokens else []
        cells += [_cell(one.bits[:, -1])]
        cells += ["" if one is runs[0] else _cell(one.bits[:, -1] - runs[0].bits[:, -1], sign="+")]
        if ablation.longer:
            cells += ["none: no such positions" if one.longer is None else _cell(one.longer)]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(values: np.ndarray, *, sign: str = "") -> str:
    mean, half = t_interval(values)
    return f"{mean:{sign}.4f} ± {half:.4f}"


def draw(ablation: Ablation, runs: Sequence[Runs], path: Path) -> None:
    """Bits per byte: curves with bands on the left, the end with intervals and the seeds' runs on the right."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "docs/guide/figures"))
    from style import BLUE, GREEN, ORANGE, axes

    figure, (left, right) = axes(2, height=3.4)
    for place, (variant, one) in enumerate(zip(ablation.variants, runs, strict=True)):
        color, dashes = (BLUE, ORANGE, GREEN)[variant.color], "--" if variant.dashed else "-"
        mean, half = t_interval(one.bits)
        trained = one.steps > 0  # a new network's loss would flatten the rest
        left.plot(one.steps[trained], mean[trained], dashes, color=color, label=variant.label)
        left.fill_between(
            one.steps[trained], (mean - half)[trained], (mean + half)[trained], color=color, alpha=0.15, linewidth=0
        )
        ends = [(one.bits[:, -1], "o")] + ([] if one.longer is None else [(one.longer, "s")])
        for values, marker in ends:
            at, (center, width) = place + 0.25 * (marker == "s"), t_interval(values)
            filled = "none" if variant.dashed else color
            right.errorbar(at, center, width, fmt=marker, color=color, markerfacecolor=filled, capsize=3)
            right.plot([at + 0.12] * len(values), values, ".", color=color, alpha=0.5, markersize=4)
    left.set(xlabel="optimizer steps", ylabel="bits per byte")
    left.legend(fontsize=8)
    labels = [variant.label.replace(", ", "\n") for variant in ablation.variants]
    right.set_xticks(range(len(labels)), labels, fontsize=7 if len(labels) > 3 else 9)
    right.set(ylabel="at the end (squares: rows twice as long)" if ablation.longer else "bits per byte at the end")
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the --out folder of the pipelines")
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    args = parser.parse_args()
    for name, ablation in ABLATIONS.items():
        try:
            runs = [read(args.runs, one, longer=one.folder in ablation.longer) for one in ablation.variants]
        except FileNotFoundError as error:
            print(f"{name}: left out, {error.filename} does not exist", file=sys.stderr)
            continue
        check_matched(name, runs)
        args.out.mkdir(parents=True, exist_ok=True)
        draw(ablation, runs, args.out / f"{name}.svg")
        print(f"### {ablation.title}\n\n{table(ablation, runs)}\n")


if __name__ == "__main__":
    main()
