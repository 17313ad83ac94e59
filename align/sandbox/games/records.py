"""Writes the records of a game as JSONL."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

Message = dict[str, str]


def dialogue(*texts: str) -> list[Message]:
    """Messages of user and assistant in turn, the user's first."""
    return [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(texts)]


def write_records(
    out: Path, files: Mapping[str, Iterable[Mapping[str, Any]]], *, what: str, seed: int, config: Any
) -> dict[str, int]:
    """Write the files of a game, and ``game.json`` with its settings and counts.

    Returns:
        Records of each file by file name.
    """
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, records in files.items():
        lines = [json.dumps(record) + "\n" for record in records]
        (out / name).write_text("".join(lines), encoding="utf-8", newline="\n")
        counts[name] = len(lines)
    summary = {"what": what, "seed": seed, "config": asdict(config), "records": counts}
    (out / "game.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8", newline="\n")
    return counts
