"""Writes the prompts as JSONL files."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from align.sandbox.checks import check_sizes
from align.sandbox.constraints.constraint import Constraint
from align.sandbox.constraints.instructions import Split, requests
from align.sandbox.constraints.kinds import HELD_OUT, TRAINED
from align.sandbox.constraints.prompts import sample_constraints, write_prompt
from align.sandbox.world import pick


@dataclass(frozen=True)
class ConstraintsConfig:
    """Numbers of prompts, and how many of them have two constraints.

    Raises:
        ValueError: a setting is invalid.
    """

    prompts: int = 2_400
    """Prompts for training"""
    prompts_val: int = 200
    """Prompts for validation"""
    prompts_test: int = 400
    """Prompts for the final comparison, of the kinds of training"""
    prompts_heldout_kinds: int = 300
    """Prompts for the final comparison, of kinds that training never sees"""
    two_constraints_rate: float = 0.3
    """Probability that a prompt has two constraints instead of one, in [0, 1]"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        check_sizes(self, rates=("two_constraints_rate",))


def write_constraints(
    out: Path,
    *,
    seed: int = 0,
    config: ConstraintsConfig = ConstraintsConfig(),  # noqa: B008
) -> dict[str, int]:
    """Writes the prompts of every split into ``out``, and ``constraints.json`` with the settings and the counts.

    No prompt occurs twice, and no two splits share an instruction, except that the held-out kinds are added to
    instructions of the test split. Record i of a file depends on the seed, the file's name and the records before it:
    more records never change the first ones, and the bytes are the same on every machine.

    Args:
        out: directory, created if it is missing; files of the same names are replaced.
        seed: of everything random.
        config: sizes, and the share of prompts with two constraints.

    Returns:
        Records of each file by file name.
    """
    files: dict[str, tuple[int, Split, str, Sequence[type[Constraint]]]] = {
        "prompts_train.jsonl": (config.prompts, "train", "train", TRAINED),
        "prompts_val.jsonl": (config.prompts_val, "validation", "validation", TRAINED),
        "prompts_test.jsonl": (config.prompts_test, "test", "test", TRAINED),
        "prompts_heldout_kinds.jsonl": (config.prompts_heldout_kinds, "test", "heldout_kinds", HELD_OUT),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, (count, topics, split, kinds) in files.items():
        made = _records(f"{seed}/{name}", topics, split, kinds, config)
        with (out / name).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(next(made)) + "\n" for _ in range(count))
    counts = {name: count for name, (count, *_) in files.items()}
    summary = {
        "what": "instructions with verifiable constraints of align",
        "seed": seed,
        "config": asdict(config),
        "records": counts,
        "heldout_kinds": [kind.kind for kind in HELD_OUT],
    }
    (out / "constraints.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8", newline="\n")
    return counts


def _records(
    seed: str, topics: Split, split: str, kinds: Sequence[type[Constraint]], config: ConstraintsConfig
) -> Iterator[dict[str, Any]]:
    """Different prompts without end; the kinds take turns as the first constraint, so that each gets its share."""
    known, seen = requests(topics), set[str]()
    for number in itertools.count():
        rng = Random(f"{seed}/{number}")
        request = pick(rng, known)
        count = 1 + (rng.random() < config.two_constraints_rate)
        constraints = sample_constraints(rng, request, kinds[number % len(kinds)], kinds, count=count)
        prompt = write_prompt(rng, request, constraints)
        if prompt in seen:
            continue
        seen.add(prompt)
        yield {
            "prompt": [{"role": "user", "content": prompt}],
            "constraints": [constraint.record() for constraint in constraints],
            "request": request.text,
            "split": split,
        }
