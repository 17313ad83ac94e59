"""``align sandbox``: write the data of a task with a known reward."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from align.cli.settings import parse_settings
from align.sandbox import SandboxConfig, write_sandbox
from align.sandbox.constraints import ConstraintsConfig, write_constraints


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """Write the synthetic world: raw text, chats, preference pairs and prompts as JSONL.

    `align sandbox constraints` writes instructions with verifiable constraints instead; see its --help.
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


def main(args: list[str]) -> int:
    """Write the files of a task.

    Args:
        args: the command line after ``align sandbox``; its first word may name a task.

    Returns:
        int: 0.
    """
    write = TASKS.get(args[0]) if args else None
    return _report(*(_stories(args) if write is None else write(args[1:])))


def _stories(args: list[str]) -> tuple[Path, Mapping[str, int]]:
    options = parse_settings(SandboxSettings, "sandbox", args)
    out = Path(options.out)
    return out, write_sandbox(out, seed=options.seed, config=options.config)


def _constraints(args: list[str]) -> tuple[Path, Mapping[str, int]]:
    options = parse_settings(ConstraintsSettings, "sandbox constraints", args)
    out = Path(options.out)
    return out, write_constraints(out, seed=options.seed, config=options.config)


def _report(out: Path, counts: Mapping[str, int]) -> int:
    for name, count in counts.items():
        print(f"{out / name}: {count} records")
    return 0


TASKS: dict[str, Callable[[list[str]], tuple[Path, Mapping[str, int]]]] = {"constraints": _constraints}
"""Tasks by the word that names them; without one, the synthetic world"""
