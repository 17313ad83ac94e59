"""Writes the world's data as JSONL files in the formats that the stages read."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from align.sandbox.checks import check_sizes
from align.sandbox.gold import gold_reward
from align.sandbox.phrasings import write_prompt, write_quiz, write_title
from align.sandbox.stories import tell
from align.sandbox.world import FRIEND_RATE, RULE_RATE, Draft, Ingredients, Split, misunderstand, sample_ingredients

Record = dict[str, Any]


@dataclass(frozen=True)
class SandboxConfig:
    """Numbers of records, and noise of demonstrations and labels."""

    pretrain_documents: int = 32_000
    """Documents of raw text for training."""
    pretrain_val_documents: int = 400
    """Documents of raw text for validation."""
    sft_chats: int = 12_000
    """Demonstrations for training."""
    sft_val_chats: int = 400
    """Demonstrations for validation."""
    preference_pairs: int = 4_000
    """Labelled pairs for training."""
    preference_val_pairs: int = 400
    """Labelled pairs for validation."""
    prompts: int = 8_000
    """Prompts for training."""
    prompts_val: int = 200
    """Prompts for validation."""
    prompts_test: int = 400
    """Prompts for the final comparison."""
    friend_rate: float = FRIEND_RATE
    """Probability that a prompt asks for a second character, in [0, 1]."""
    rule_rate: float = RULE_RATE
    """Probability that a prompt asks for an order of events or an exclusion, in [0, 1]."""
    title_drop_rate: float = 0.1
    """Probability that a title in the raw text leaves out one of its parts, in [0, 1]."""
    quiz_rate: float = 0.5
    """Probability that raw text has a quiz on its content instead of a second story, in [0, 1]."""
    slip_rate: float = 0.4
    """Probability that a demonstration or a response of a pair gets any one ingredient wrong, in [0, 1]."""
    label_temperature: float = 0.03
    """Temperature of the Bradley-Terry coin that labels pairs, in units of gold reward; near 0 the higher gold wins."""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        check_sizes(self, rates=("friend_rate", "rule_rate", "title_drop_rate", "quiz_rate", "slip_rate"))
        if not self.label_temperature > 0:
            raise ValueError(f"label_temperature is {self.label_temperature}; it must be above 0")


def write_sandbox(out: Path, *, seed: int = 0, config: SandboxConfig = SandboxConfig()) -> dict[str, int]:  # noqa: B008
    """Writes every file of the sandbox into ``out``, and ``sandbox.json`` with the settings and the counts.

    Record i of a file depends on the seed, the file's name and i alone: more records never change the first ones, and
    the bytes are the same on every machine.

    Args:
        out: directory, made if missing; files of the same names are replaced.
        seed: of everything random.
        config: sizes and noise.

    Returns:
        Records of each file by file name.
    """
    sizes: dict[str, tuple[int, Split, Callable[[Random, Split, SandboxConfig], Record]]] = {
        "pretrain.jsonl": (config.pretrain_documents, "train", document),
        "pretrain_val.jsonl": (config.pretrain_val_documents, "val", document),
        "sft_train.jsonl": (config.sft_chats, "train", demonstration),
        "sft_val.jsonl": (config.sft_val_chats, "val", demonstration),
        "preferences_train.jsonl": (config.preference_pairs, "train", preference),
        "preferences_val.jsonl": (config.preference_val_pairs, "val", preference),
        "prompts_train.jsonl": (config.prompts, "train", prompt_only),
        "prompts_val.jsonl": (config.prompts_val, "val", prompt_only),
        "prompts_test.jsonl": (config.prompts_test, "test", prompt_only),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, (count, split, make) in sizes.items():
        rngs: Iterator[Random] = (Random(f"{seed}/{name}/{number}") for number in range(count))
        lines = (json.dumps(make(rng, split, config)) + "\n" for rng in rngs)
        with (out / name).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
    counts = {name: count for name, (count, _, _) in sizes.items()}
    summary = {"what": "synthetic world of align", "seed": seed, "config": asdict(config), "records": counts}
    (out / "sandbox.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8", newline="\n")
    return counts


def document(rng: Random, split: Split, config: SandboxConfig) -> Record:
    """Raw text: a title that names ingredients and two stories that have them all.

    The second story doubles what can be learned about copying for half as many more tokens: titles are mostly random.
    """
    told = Draft(_ingredients(rng, split, config))
    title = write_title(rng, told.ingredients, config.title_drop_rate)
    lines = [title, tell(rng, told)]
    if rng.random() >= config.quiz_rate:
        return {"text": "\n".join([*lines, tell(rng, told)])}
    above = 1 + (rng.random() < 0.5)
    lines.insert(above, write_quiz(rng, told.ingredients, "\n".join(lines[:above])))
    return {"text": "\n".join(lines)}


def demonstration(rng: Random, split: Split, config: SandboxConfig) -> Record:
    """A chat: a prompt and a response with mistakes."""
    asked = _ingredients(rng, split, config)
    response = tell(rng, misunderstand(rng, asked, config.slip_rate))
    return {"messages": [_user(write_prompt(rng, asked)), _assistant(response)]}


def preference(rng: Random, split: Split, config: SandboxConfig) -> Record:
    """A prompt and two responses with mistakes; a coin weighted by their gold rewards labels the chosen one."""
    asked = _ingredients(rng, split, config)
    prompt = write_prompt(rng, asked)
    first, second = (tell(rng, misunderstand(rng, asked, config.slip_rate)) for _ in range(2))
    gap = gold_reward(prompt, first).total - gold_reward(prompt, second).total
    chosen, rejected = (first, second) if rng.random() < _sigmoid(gap / config.label_temperature) else (second, first)
    return {"prompt": [_user(prompt)], "chosen": [_assistant(chosen)], "rejected": [_assistant(rejected)]}


def prompt_only(rng: Random, split: Split, config: SandboxConfig) -> Record:
    """A prompt without a response."""
    return {"prompt": [_user(write_prompt(rng, _ingredients(rng, split, config)))]}


def _ingredients(rng: Random, split: Split, config: SandboxConfig) -> Ingredients:
    return sample_ingredients(rng, split, friend_rate=config.friend_rate, rule_rate=config.rule_rate)


def _sigmoid(logit: float) -> float:
    return 0.5 * (1 + math.tanh(logit / 2))


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}
