"""Which of two responses was chosen: a reward model, DPO's implicit reward and simple baselines, on held-out pairs.

align run recipes/instructions ... --only reward dpo --seed 0 --out runs/real0      (and 1, 2; see docs/real_text.md)
python benchmarks/pair_accuracy.py runs/real0 runs/real1 runs/real2 --out benchmarks/results/pair_accuracy.json

For each run: the share of the pairs held out by its recipe whose chosen response gets the higher score (ties count
half), with a bootstrap interval over pairs; and over all runs, each pair's mean over them. Scores are those of the
reward model, DPO's implicit reward (log-prob under the policy minus log-prob under the SFT model), the SFT model's own
log-prob (summed, and per token), fewer tokens, more tokens, and a linear classifier on the set of words of a response,
trained on the training pairs.
"""

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from align.algorithms.response_logprobs import response_logprobs
from align.data.pair_data import PreferenceData
from align.io.directory import load_network
from align.rewards.functions import load_reward
from align.tokenizer import Tokenizer

NAMES = {
    "reward": "reward model",
    "dpo": "DPO's implicit reward",
    "sft_sum": "SFT log-prob, summed",
    "sft_token": "SFT log-prob per token",
    "words": "words, in no order",
    "shorter": "shorter answer",
    "longer": "longer answer",
}


class Texts(NamedTuple):
    """The responses of a split as texts, in order."""

    chosen: list[str]
    rejected: list[str]


def right(lead: torch.Tensor) -> np.ndarray:
    """``[N]`` leads of the chosen responses to 1 where it leads, 0.5 where it ties, 0 where it trails."""
    return 0.5 * (1 + lead.double().sign().numpy())


def read_texts(data: PreferenceData, split: str, tokenizer: Tokenizer) -> Texts:
    """The responses of a split, as the networks read them."""
    texts = Texts([], [])
    for batch in data.record_loader(split):
        answers = [tokenizer.decode(row[mask].tolist()) for row, mask in zip(batch.ids, batch.mask, strict=True)]
        real = (batch.numbers >= 0).tolist()
        half = len(real)
        texts.chosen.extend(text for text, keep in zip(answers[:half], real, strict=True) if keep)
        texts.rejected.extend(text for text, keep in zip(answers[half:], real, strict=True) if keep)
    return texts


def word_leads(train: Texts, held_out: Texts, *, decay: float = 1e-2, steps: int = 300) -> torch.Tensor:
    """``[N]`` by how much a logistic regression on words prefers the chosen response.

    Its input is the chosen response's word indicators minus the rejected one's; it has no intercept, as the order of a
    pair is arbitrary. Full-batch Adam, from zero, on the mean loss plus ``decay`` times half the squared weights.
    """

    def words(text: str) -> set[str]:
        return set(re.findall(r"\w+|[^\w\s]", text.lower()))

    known = {word: i for i, word in enumerate(sorted(set().union(*map(words, train.chosen + train.rejected))))}

    def differences(texts: Texts) -> torch.Tensor:
        out = torch.zeros(len(texts.chosen), len(known))
        for row, pair in zip(out, zip(*texts, strict=True), strict=True):
            for sign, text in zip((1, -1), pair, strict=True):
                row[[known[word] for word in words(text) if word in known]] += sign
        return out

    weights, inputs = torch.zeros(len(known), requires_grad=True), differences(train)
    optimizer = torch.optim.Adam([weights], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -torch.nn.functional.logsigmoid(inputs @ weights).mean() + decay / 2 * weights.square().sum()
        loss.backward()
        optimizer.step()
    return differences(held_out) @ weights.detach()


@torch.no_grad()
def measure(run: Path) -> dict[str, np.ndarray]:
    """``[N]`` of every score: whether it is higher for the chosen response of a held-out pair."""
    config = yaml.safe_load((run / "reward" / "config.yaml").read_text(encoding="utf-8"))
    data = PreferenceData(**config["data"]["init_args"])
    data.prepare_data()
    data.setup("fit")
    reward: Any = load_reward(str(run / "reward" / "model"))
    sft, dpo = (load_network(run / name / "model").eval() for name in ("sft", "dpo"))
    rows: list[torch.Tensor] = []
    for batch in data.record_loader("validation"):
        lengths = batch.lengths.clamp(max=sft.config.context)
        scores = reward.score_ids(batch.ids[:, : sft.config.context], lengths)
        base, policy = (response_logprobs(network, batch.rows, shared_prefix=True) for network in (sft, dpo))
        tokens = batch.mask.sum(1)
        columns = [scores, policy - base, base, base / tokens.clamp(min=1), -tokens, tokens]
        chosen, rejected = torch.stack([column.double() for column in columns]).chunk(2, dim=1)
        rows.append((chosen - rejected)[:, batch.numbers >= 0])
    names = ("reward", "dpo", "sft_sum", "sft_token", "shorter", "longer")
    found = dict(zip(names, map(right, torch.cat(rows, dim=1)), strict=True))
    with torch.enable_grad():
        leads = word_leads(*(read_texts(data, split, data.tokenizer) for split in ("train", "validation")))
    return found | {"words": right(leads)}


def summary(values: np.ndarray, *, draws: int = 10_000) -> dict[str, Any]:
    """Mean and 95% interval of ``[pairs]`` values, pairs drawn with replacement."""
    rng = np.random.default_rng(0)
    drawn = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"accuracy": round(float(values.mean()), 4), "ci95": [round(float(low), 4), round(float(high), 4)]}


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A Markdown table with a column for each run and one for all."""
    lines = ["| score | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for key, name in NAMES.items():
        cells = [
            f"{row[key]['accuracy']:.1%} ({row[key]['ci95'][0]:.1%} to {row[key]['ci95'][1]:.1%})"
            for row in results.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summarise(found: dict[str, dict[str, np.ndarray]], places: slice) -> dict[str, dict[str, dict[str, Any]]]:
    """Each run's accuracies on some of the pairs, and those of each pair's mean over the runs."""
    everything: dict[str, Sequence[np.ndarray]] = {key: [run[key] for run in found.values()] for key in NAMES}
    together = {"all": {key: np.mean(values, axis=0) for key, values in everything.items()}}
    return {
        name: {key: summary(values[places]) for key, values in run.items()} for name, run in (found | together).items()
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of recipes/instructions, on the same pairs")
    parser.add_argument(
        "--unseen",
        type=int,
        default=110,
        help="also report this many last pairs, whose instructions SFT held out too (default: 110; 0: none)",
    )
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args()
    started = time.perf_counter()
    found = {run.name: measure(run) for run in args.runs}
    results = {"held out": summarise(found, slice(None))}
    if args.unseen:
        results[f"the last {args.unseen} of them"] = summarise(found, slice(-args.unseen, None))
    for name, part in results.items():
        print(f"{name}:\n\n{table(part)}\n")
    if args.out:
        about = {
            "date": str(date.today()),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "pairs": len(next(iter(found.values()))["reward"]),
            "seconds": round(time.perf_counter() - started, 1),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"about": about} | results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
