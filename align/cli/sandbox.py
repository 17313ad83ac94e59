"""``align sandbox``: write the data of a task with a known reward."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from align.cli.settings import parse_settings
from align.data.formats.fields import text
from align.data.readers import BadRecords, Source, find_sources
from align.io.atomic import replacing_file
from align.sandbox import SandboxConfig, write_sandbox
from align.sandbox.constraints import ConstraintsConfig, Draft, Tally, demonstrations, write_constraints
from align.sandbox.games import ArithmeticConfig, QuestionsConfig, write_arithmetic, write_questions


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """Write the synthetic world: raw text, chats, preference pairs and prompts as JSONL.

    `align sandbox constraints` writes instructions with verifiable constraints instead, `align sandbox demonstrations`
    edits drafts so that they satisfy them, and `align sandbox questions` and `align sandbox arithmetic` write tasks of
    several turns; see their --help.
    """

    out: str
    """Directory, created if it is missing"""
    seed: int = 0
    """Seed of everything random"""
    config: SandboxConfig = SandboxConfig()
    """Sizes and rates"""


@dataclass(frozen=True, kw_only=True)
class ConstraintsSettings:
    """Write instructions with constraints that a program can verify, as JSONL."""

    out: str
    """Directory, created if it is missing"""
    seed: int = 0
    """Seed of everything random"""
    config: ConstraintsConfig = ConstraintsConfig()
    """Sizes and rates"""


@dataclass(frozen=True, kw_only=True)
class QuestionsSettings:
    """Write a guessing game of several turns: chats that ask at random, and prompts with a secret, as JSONL."""

    out: str
    """Directory, created if it is missing"""
    seed: int = 0
    """Seed of everything random"""
    config: QuestionsConfig = QuestionsConfig()
    """Sizes"""


@dataclass(frozen=True, kw_only=True)
class ArithmeticSettings:
    """Write word problems: chats that solve them with a calculator, not always well, and prompts with answers."""

    out: str
    """Directory, created if it is missing"""
    seed: int = 0
    """Seed of everything random"""
    config: ArithmeticConfig = ArithmeticConfig()
    """Sizes and shares"""


@dataclass(frozen=True, kw_only=True)
class DemonstrationsSettings:
    """Edit drafts so that they satisfy the constraints of their prompts, and write them as chats for SFT.

    Raises:
        ValueError: a setting is invalid.
    """

    drafts: str
    """File, glob or Hub id of {'prompt': text with constraints, 'text': response}, as `align generate --out` writes"""
    out: str
    """JSONL file to write; OUT.meta.json beside it counts what became of the drafts"""
    rate: float = 1.0
    """Probability that a draft is edited, in [0, 1]; the others keep their mistakes"""
    seed: int = 0
    """Seed of everything random"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; it is a probability and must lie in [0, 1]")


def main(args: list[str]) -> int:
    """Write the files of a task.

    Args:
        args: the command line after ``align sandbox``; its first word may name a task.

    Returns:
        int: 0.
    """
    named = bool(args) and args[0] in TASKS
    counts = TASKS[args[0]](args[1:]) if named else _generated(args, "sandbox", SandboxSettings, write_sandbox)
    for file, count in counts.items():
        print(f"{file}: {count} records")
    return 0


def _generated(args: list[str], verb: str, kind: Any, write: Callable[..., dict[str, int]]) -> dict[Path, int]:
    """Write the files of a generator whose settings are a folder, a seed and a configuration."""
    options = parse_settings(kind, verb, args)
    out = Path(options.out)
    return {out / name: count for name, count in write(out, seed=options.seed, config=options.config).items()}


def _demonstrations(args: list[str]) -> dict[Path, int]:
    options = parse_settings(DemonstrationsSettings, "sandbox demonstrations", args)
    sources, out, tally = find_sources(options.drafts), Path(options.out), Tally()
    with replacing_file(out) as file:
        for prompt, response in demonstrations(_drafts(sources), tally, rate=options.rate, seed=options.seed):
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
        if not tally.records:
            raise ValueError(
                f"nothing to write: none of the {tally.drafts} drafts of {options.drafts} became a demonstration"
            )
        summary = {
            "what": "edited drafts",
            "drafts": [{"file": source.name, "sha256": source.fingerprint()} for source in sources],
            "rate": options.rate,
            "seed": options.seed,
            "counts": tally.counts(),
        }
        with replacing_file(out.with_name(f"{out.name}.meta.json")) as meta:
            meta.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return {out: tally.records}


def _drafts(sources: Sequence[Source]) -> Iterator[Draft]:
    for source in sources:
        for record in source.records(BadRecords("stop", hint="")):
            try:
                yield Draft(text(record.fields, "prompt"), text(record.fields, "text"))
            except ValueError as error:
                raise ValueError(
                    f"{record.source}: {record.location}: a draft needs the texts 'prompt' and 'text': {error}"
                ) from None


TASKS: dict[str, Callable[[list[str]], dict[Path, int]]] = {
    "constraints": partial(_generated, verb="sandbox constraints", kind=ConstraintsSettings, write=write_constraints),
    "demonstrations": _demonstrations,
    "questions": partial(_generated, verb="sandbox questions", kind=QuestionsSettings, write=write_questions),
    "arithmetic": partial(_generated, verb="sandbox arithmetic", kind=ArithmeticSettings, write=write_arithmetic),
}
"""Tasks by the word that names them; without one, the synthetic world"""
