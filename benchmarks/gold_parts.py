"""The parts of the sandbox's gold reward, averaged over a file of chats or of samples.

python benchmarks/gold_parts.py runs/tiny/samples/sft.jsonl
"""

import argparse
import json
import statistics
from pathlib import Path

from align.sandbox import GoldReward, gold_reward


def score(row: dict) -> GoldReward:
    """Gold of a demonstration (messages) or of a sample (prompt, text)."""
    if "messages" in row:
        prompt, response = (message["content"] for message in row["messages"])
        return gold_reward(prompt, response)
    return gold_reward(row["prompt"], row["text"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSONL: demonstrations, or what align generate --out wrote")
    file = parser.parse_args().file
    golds = [score(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    for part in GoldReward._fields:
        print(f"{part} {statistics.mean(getattr(gold, part) for gold in golds):.3f}")
    print(f"well-formed texts {statistics.mean(gold.grammar == 1 for gold in golds):.3f} of {len(golds)}")


if __name__ == "__main__":
    main()
