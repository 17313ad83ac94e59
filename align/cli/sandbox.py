"""``align sandbox``: write the synthetic world's data."""

from dataclasses import fields
from pathlib import Path

from align.cli.parsing import make_parser, parse


def main(args: list[str]) -> int:
    """Write the sandbox's files.

    Args:
        args: the command line after ``align sandbox``.

    Returns:
        int: 0.
    """
    from align.sandbox import SandboxConfig, write_sandbox

    parser = make_parser(
        "sandbox", "Write the synthetic world: raw text, chats, preference pairs and prompts as JSONL."
    )
    parser.add_argument("--out", required=True, help="directory, made if missing")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_class_arguments(SandboxConfig)
    options = parse(parser, args)
    config = SandboxConfig(**{field.name: getattr(options, field.name) for field in fields(SandboxConfig)})
    for name, count in write_sandbox(Path(options.out), seed=options.seed, config=config).items():
        print(f"{Path(options.out) / name}: {count} records")
    return 0
