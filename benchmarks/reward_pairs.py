"""Accuracy of reward models on pairs, by category, and how far align's scores are from transformers' own.

python benchmarks/reward_pairs.py runs/smollm2-135m/seed0/reward/model HUB_OR_DIRECTORY --pairs PAIRS.jsonl \
    --limit 200 --threads 1 --out benchmarks/results/reward_pairs.json

PAIRS has ``{"prompt", "chosen", "rejected", "subset"}`` per line, as RewardBench has, or any other format of preference
pairs. Reward models are directories of the reward stage, or sequence classifiers with one label. transformers renders
and tokenizes each chat itself and scores one row at a time, in float32. The reward stage trains on chats that end with
the end of the last turn, so what a template writes after it is left out for directories that align wrote.
"""

import argparse
import json
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch

from align.cli.text_files import read_ranked_pairs
from align.evaluate.reward_pairs import RankedPair
from align.io.location import locate
from align.rewards.reward_model import RewardModel
from align.tokenizer.prompts import as_messages


def of_align(directory: Path, pairs: Sequence[RankedPair]) -> np.ndarray:
    """``[P, 2]`` scores of chosen and rejected, without normalisation."""
    model = RewardModel.load(directory)
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    scores = model(prompts, [text for pair in pairs for text in (pair.chosen, pair.rejected)])
    return np.array(scores).reshape(-1, 2) * model.std + model.mean


@torch.no_grad()
def of_transformers(directory: Path, pairs: Sequence[RankedPair]) -> np.ndarray:
    """``[P, 2]`` the same by transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    network = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    ours = (directory / "align.json").is_file()
    rows = []
    for pair in pairs:
        for text in (pair.chosen, pair.rejected):
            chat = [*as_messages(pair.prompt), {"role": "assistant", "content": text}]
            whole = tokenizer.apply_chat_template(chat, tokenize=False)
            ids = tokenizer(whole.rstrip() if ours else whole, add_special_tokens=False, return_tensors="pt").input_ids
            rows.append(float(network(ids).logits))
    return np.array(rows).reshape(-1, 2)


def accuracy(scores: np.ndarray, pairs: Sequence[RankedPair]) -> dict[str, float]:
    """Share of pairs in the right order, ties half: of all pairs, and by category."""
    right = 0.5 * (1 + np.sign(scores[:, 0] - scores[:, 1]))
    names = np.array([pair.category for pair in pairs])
    categories = [name for name in dict.fromkeys(names.tolist()) if name]
    return {"all": float(right.mean()), **{name: float(right[names == name].mean()) for name in categories}}


def compared(directory: Path, pairs: Sequence[RankedPair]) -> dict[str, Any]:
    """Both accuracies, the largest difference of a score, pairs in another order, and CPU seconds."""
    tables, seconds = {}, {}
    for name, score in (("align", of_align), ("transformers", of_transformers)):
        began = time.process_time()
        tables[name] = score(directory, pairs)
        seconds[name] = round(time.process_time() - began, 1)
    orders = [np.sign(table[:, 0] - table[:, 1]) for table in tables.values()]
    return {
        "accuracy": {name: accuracy(table, pairs) for name, table in tables.items()},
        "largest_difference": float(np.abs(tables["align"] - tables["transformers"]).max()),
        "other_order": int((orders[0] != orders[1]).sum()),
        "cpu_s": seconds,
    }


def main() -> None:
    """Compare every model and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="directories of reward models")
    parser.add_argument("--pairs", required=True, help="JSONL of pairs")
    parser.add_argument("--limit", type=int, help="number of pairs; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pairs = read_ranked_pairs(args.pairs, limit=args.limit)
    found = {model: compared(locate(model), pairs) for model in args.models}
    print("| model | category | align | transformers | largest difference of a score | pairs in another order |")
    print("|---|---|---|---|---|---|")
    for model, one in found.items():
        for category, value in one["accuracy"]["align"].items():
            other = one["accuracy"]["transformers"][category]
            tail = f"{one['largest_difference']:.1e} | {one['other_order']}" if category == "all" else " | "
            print(f"| {model} | {category} | {value:.3f} | {other:.3f} | {tail} |")
    print(f"\n{len(pairs)} pairs; {measure.machine()}; {args.threads} thread(s); {date.today()}")
    if args.out:
        facts = {"pairs": len(pairs), "machine": measure.machine(), "date": str(date.today()), "threads": args.threads}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(facts | {"models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
