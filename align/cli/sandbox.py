"""``align sandbox``: write the synthetic world's data."""

from dataclasses import dataclass
from pathlib import Path

from align.cli.settings import parse_settings
from align.sandbox import SandboxConfig, write_sandbox


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """Write the synthetic world: raw text, chats, preference pairs and prompts as JSONL."""

    out: str
    """Directory, created if it is missing"""
    seed: int = 0
    """Seed of everything random"""
    config: SandboxConfig = SandboxConfig()
    """Sizes and rates"""


def main(args: list[str]) -> int:
    """Write the sandbox's files.

    Args:
        args: the command line after ``align sandbox``.

    Returns:
        int: 0.
    """
    options = parse_settings(SandboxSettings, "sandbox", args)
    out = Path(options.out)
    for name, count in write_sandbox(out, seed=options.seed, config=options.config).items():
        print(f"{out / name}: {count} records")
    return 0
