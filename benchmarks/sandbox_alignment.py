"""What alignment achieves in the sandbox: every run's models on the same held-out prompts, paired by prompt and seed.

align run recipes/tiny --seed 0 --out runs/seed0      (and 1, 2)
python benchmarks/sandbox_alignment.py runs/seed0 runs/seed1 runs/seed2 --out benchmarks/results/sandbox_alignment.json

For each run: gold reward (temperature 1) of the SFT model and of every aligned one, the share of samples in which it
beats the SFT model's response to the same prompt (ties count half) with a bootstrap interval over prompts, its KL to
the SFT model in nats per response on its own samples, and how often the reward model orders pairs of SFT responses to
held-out prompts as the noiseless gold reward does.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from align.generation.generate import generate
from align.generation.sampling_config import SamplingConfig
from align.io.directory import load_network
from align.model.gpt import GPT
from align.objectives import sequence_logprobs
from align.rewards.functions import load_reward
from align.sandbox import GoldReward, gold_reward
from align.tokenizer import Tokenizer

ALIGNED = ("dpo", "ppo", "grpo")
ROWS = 128
WIDE = 0.2


class Answers(NamedTuple):
    """Responses to the prompts in order: as texts, as ids, and whether they ended with a stop token."""

    texts: list[str]
    ids: list[list[int]]
    ended: list[bool]


def answer(network: GPT, tokenizer: Tokenizer, prompts: Sequence[list[int]], args: argparse.Namespace) -> Answers:
    """One response to each prompt; row i draws from seed i, whatever the network."""
    out = Answers([], [], [])
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=args.max_new_tokens)
    for start in range(0, len(prompts), ROWS):
        rows = prompts[start : start + ROWS]
        seeds = [args.seed + row for row in range(start, start + len(rows))]
        drawn = generate(
            network, rows, sampling, stop_ids=tokenizer.stop_ids, seeds=seeds, pad_id=tokenizer.pad_id or 0
        )
        for ids, count in zip(drawn.ids.tolist(), drawn.mask.sum(1).tolist(), strict=True):
            out.ids.append(ids[:count])
            out.texts.append(tokenizer.decode(ids[:count]))
        out.ended.extend(drawn.finished.tolist())
    return out


@torch.no_grad()
def logprobs(network: GPT, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> np.ndarray:
    """``[N]`` log-probabilities of whole responses, nats."""
    out = []
    for start in range(0, len(prompts), ROWS):
        rows = list(zip(prompts[start : start + ROWS], responses[start : start + ROWS], strict=True))
        width = max(len(prompt) + len(response) for prompt, response in rows)
        ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.bool)
        for row, (prompt, response) in enumerate(rows):
            ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
            mask[row, len(prompt) : len(prompt) + len(response)] = True
        out.append(sequence_logprobs(network.hidden(ids[:, :-1]), network.output_weight, ids, mask))
    return torch.cat(out).double().numpy()


def bootstrap(values: np.ndarray, *, draws: int = 10_000) -> list[float]:
    """95% interval of the mean of ``[prompts, n]`` values, prompts drawn with replacement."""
    means = values.mean(1)
    rng = np.random.default_rng(0)
    drawn = means[rng.integers(0, len(means), (draws, len(means)))].mean(1)
    return [round(float(q), 4) for q in np.quantile(drawn, [0.025, 0.975])]


def describe(answers: Answers, golds: list[Any], per_prompt: int) -> dict[str, Any]:
    """Statistics of one model's responses alone."""
    totals = np.array([gold.total for gold in golds]).reshape(-1, per_prompt)
    return {
        "gold": round(float(totals.mean()), 4),
        "gold_ci95": bootstrap(totals),
        "length": round(statistics.mean(map(len, answers.ids)), 2),
        "eos_rate": round(statistics.mean(answers.ended), 4),
        "well_formed": round(statistics.mean(gold.grammar == 1 for gold in golds), 4),
        "complete": round(statistics.mean(gold.complete for gold in golds), 4),
        "distinct": round(len(set(answers.texts)) / len(answers.texts), 4),
    }


def reward_agreement(
    run: Path, prompts: Sequence[str], answers: Answers, golds: Sequence[GoldReward], n: int
) -> dict[str, Any]:
    """How often the reward model orders two SFT responses to a prompt as the gold reward does.

    Among all pairs that gold does not tie, those far apart, and both where neither response has a broken sentence.
    """
    scores = load_reward(str(run / "reward" / "model"))(prompts, answers.texts)
    right: dict[str, list[bool]] = {name: [] for name in ("untied", "wide", "untied_well_formed", "wide_well_formed")}
    for start in range(0, len(scores), n):
        for a, b in itertools.combinations(range(start, start + n), 2):
            gap = golds[a].total - golds[b].total
            well_formed = golds[a].grammar == golds[b].grammar == 1
            for name, far in (("untied", 0.0), ("wide", WIDE)):
                if abs(gap) > far:
                    for kind in (name, f"{name}_well_formed") if well_formed else (name,):
                        right[kind].append((scores[a] > scores[b]) == (gap > 0))
    shares = {name: round(statistics.mean(found), 4) for name, found in right.items()}
    return shares | {f"{name}_pairs": len(found) for name, found in right.items()}


def measure(run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All measurements of one run."""
    tokenizer = Tokenizer.load(run / "sft" / "model")
    lines = (run / "data" / "prompts_test.jsonl").read_text(encoding="utf-8").splitlines()[: args.prompts]
    messages = [json.loads(line)["prompt"] for line in lines for _ in range(args.n)]
    asked = [prompt[-1]["content"] for prompt in messages]
    ids = [tokenizer.render_chat(prompt, add_generation_prompt=True).ids for prompt in messages]
    result: dict[str, Any] = {"run": run.name}
    baseline = load_network(run / "sft" / "model").eval()
    base_gold: np.ndarray | None = None
    for name in ("sft", *ALIGNED):
        if not (run / name / "model" / "config.json").is_file():
            continue
        network = load_network(run / name / "model").eval()
        answers = answer(network, tokenizer, ids, args)
        golds = [gold_reward(prompt, text) for prompt, text in zip(asked, answers.texts, strict=True)]
        totals = np.array([gold.total for gold in golds]).reshape(-1, args.n)
        result[name] = describe(answers, golds, args.n)
        if base_gold is None:
            base_gold = totals
            if (run / "reward" / "model" / "config.json").is_file():
                result["reward"] = reward_agreement(run, asked, answers, golds, args.n)
            continue
        wins = (totals > base_gold) + 0.5 * (totals == base_gold)
        kl = (logprobs(network, ids, answers.ids) - logprobs(baseline, ids, answers.ids)).reshape(-1, args.n)
        result[name] |= {
            "win_rate": round(float(wins.mean()), 4),
            "win_rate_ci95": bootstrap(wins),
            "kl": round(float(kl.mean()), 3),
            "kl_ci95": bootstrap(kl),
        }
    return result


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["| run | model | gold (95%) | beats SFT (95%) | KL, nats | complete | well formed | tokens | ended |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for result in results:
        for name in ("sft", *ALIGNED):
            if (row := result.get(name)) is None:
                continue
            low, high = row["gold_ci95"]
            wins = "-"
            if "win_rate" in row:
                wins = f"{row['win_rate']:.1%} ({row['win_rate_ci95'][0]:.1%} to {row['win_rate_ci95'][1]:.1%})"
            lines.append(
                f"| {result['run']} | {name} | {row['gold']:.3f} ({low:.3f} to {high:.3f}) | {wins} | "
                f"{row.get('kl', 0.0):.1f} | {row['complete']:.2f} | {row['well_formed']:.2f} | {row['length']:.1f} | "
                f"{row['eos_rate']:.2f} |"
            )
    lines += [
        "",
        "| run | untied pairs | gold differs by more than 0.2 | untied, well formed | by more than 0.2, well formed |",
    ]
    lines.append("|---|---|---|---|---|")
    for result in results:
        if row := result.get("reward"):
            kinds = ("untied", "wide", "untied_well_formed", "wide_well_formed")
            lines.append(
                f"| {result['run']} | " + " | ".join(f"{row[k]:.1%} of {row[f'{k}_pairs']}" for k in kinds) + " |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of recipes/tiny")
    parser.add_argument("--prompts", type=int, default=400, help="held-out prompts (default: 400)")
    parser.add_argument("--n", type=int, default=4, help="samples per prompt (default: 4)")
    parser.add_argument("--max_new_tokens", type=int, default=96, help="longest response, tokens (default: 96)")
    parser.add_argument("--seed", type=int, default=1_000_000, help="seed of the first sample (default: 1000000)")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args()
    started = time.perf_counter()
    results = [measure(run, args) for run in args.runs]
    print(table(results))
    if args.out:
        about = {
            "date": str(date.today()),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "prompts": args.prompts,
            "samples_per_prompt": args.n,
            "seconds": round(time.perf_counter() - started, 1),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"about": about, "runs": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
