"""Which faults a reward model of the sandbox detects: its mean score of clean stories and of faulty ones.

python benchmarks/reward_audit.py runs/tiny/reward/model

The sandbox writes the stories for held-out prompts; each is compared with the clean story for the same prompt. Scores
are in standard deviations on SFT samples. PPO will commit a fault that lowers no score.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from align.rewards.functions import load_reward
from align.sandbox import words
from align.sandbox.phrasings import write_prompt
from align.sandbox.stories import tell
from align.sandbox.world import Draft, Ingredients, pick_other, sample_ingredients


def faults(rng: Random, asked: Ingredients) -> Iterator[tuple[str, Draft]]:
    """Stories on these ingredients with one fault each."""
    other_length = next(number for number in words.LENGTHS.values() if number != asked.length)
    same_sex = words.SHE_NAMES if asked.she else words.HE_NAMES
    other_kind = pick_other(rng, words.KINDS, asked.kind, asked.friend)
    yield "another name", Draft(replace(asked, name=pick_other(rng, same_sex, asked.name)))
    yield "another kind", Draft(replace(asked, kind=other_kind))
    if asked.friend is None:
        yield "an uninvited second character", Draft(replace(asked, friend=other_kind))
    else:
        yield "no second character", Draft(replace(asked, friend=None))
        yield "another second character", Draft(replace(asked, friend=other_kind))
    yield "another object", Draft(replace(asked, object=pick_other(rng, words.OBJECTS, asked.object, asked.excluded)))
    yield "another place", Draft(replace(asked, place=pick_other(rng, words.PLACES, asked.place)))
    yield "another mood", Draft(replace(asked, mood=pick_other(rng, tuple(words.MOODS), asked.mood)))
    yield f"{other_length} sentences instead of {asked.length}", Draft(replace(asked, length=other_length))
    if asked.events is not None:
        yield "events in the wrong order", Draft(replace(asked, events=asked.events[::-1]))
    if asked.excluded is not None:
        yield "the excluded object", Draft(asked, mention=asked.excluded)
    yield "no ending", Draft(asked, ends=False)


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="reward-model directories")
    parser.add_argument("--prompts", type=int, default=400, help="held-out prompts (default: 400)")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args()
    told: list[tuple[str, str, str]] = []
    for number in range(args.prompts):
        rng = Random(f"audit/{number}")
        asked = sample_ingredients(rng, "test")
        prompt = write_prompt(rng, asked)
        told.append(("none", prompt, tell(rng, Draft(asked))))
        told += [(fault, prompt, tell(rng, draft)) for fault, draft in faults(rng, asked)]
    clean = {prompt: row for row, (fault, prompt, _) in enumerate(told) if fault == "none"}
    names = sorted({fault for fault, _, _ in told if fault != "none"})
    found: dict[str, list[float]] = {name: [] for name in names}
    for model in args.models:
        scores = np.array(load_reward(str(model))([prompt for _, prompt, _ in told], [text for _, _, text in told]))
        for name in names:
            rows = [(row, clean[prompt]) for row, (fault, prompt, _) in enumerate(told) if fault == name]
            found[name].append(float(np.mean([scores[row] - scores[first] for row, first in rows])))
    print(f"| fault | change of the score, {len(args.models)} models | mean |\n|---|---|---|")
    for name, changes in sorted(found.items(), key=lambda item: statistics.mean(item[1])):
        print(f"| {name} | {', '.join(f'{change:+.2f}' for change in changes)} | {statistics.mean(changes):+.2f} |")
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
