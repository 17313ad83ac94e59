"""``align arena``: a local web page on which people vote between blind responses."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.cli.chat_model import load_chat_models
from align.cli.device import DeviceSettings
from align.cli.errors import UsageError
from align.cli.model_path import named_models
from align.cli.prompt_file import read_prompts
from align.cli.sampling import SamplingFlags
from align.cli.serving import LOCAL, free_address
from align.cli.settings import parse_settings, setting
from align.pipeline.run_lock import run_lock

if TYPE_CHECKING:
    from align.arena.rounds import Arena
    from align.tokenizer.prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class ArenaSettings:
    """Vote on a local web page between blind responses of two models; the votes become preference data.

    With more than two models, each round draws a pair.

    Raises:
        ValueError: a setting is invalid.
    """

    models: tuple[str, ...] = setting(positional=True, metavar="[NAME=]PATH")
    """Model directory, folder of a stage, Hugging Face directory, GGUF file or Hub id of each model, at least two"""
    prompts: str | None = None
    """File or Hub data set whose prompts the page suggests, one per round; null: the page suggests none"""
    out: str = "runs/arena"
    """Folder of votes.jsonl, preferences.jsonl and feedback.jsonl; an arena continues what is there"""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all addresses of this machine, so that others can vote"""
    port: int = 8001
    """Port to listen on; 0: any free port"""
    system: str | None = None
    """System message of prompts that have none; null: none"""
    seed: int = 0
    """Hashed with the index of each round to draw its pair, its order and its responses"""
    sampling: SamplingFlags = SamplingFlags()
    """How tokens are drawn"""
    device: DeviceSettings = DeviceSettings()
    """Device of the networks"""
    json: bool = False
    """Print one JSON object with the address at the start, and one with the table at the end"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port is {self.port}; it must be between 0 (any that is free) and 65535")
        if len(self.models) < 2:
            raise ValueError(f"models is {', '.join(self.models)}; an arena takes at least two")


def main(args: list[str]) -> int:
    """Serve until SIGINT or SIGTERM.

    Args:
        args: the command line after ``align arena``.

    Returns:
        int: 0.
    """
    options = parse_settings(ArenaSettings, "arena", args)
    if Path(options.out).exists() and not Path(options.out).is_dir():
        raise UsageError(f"--out {options.out} is a file; name a folder")
    # What is cheap to get wrong comes before the models, which take time.
    models = named_models(options.models)
    prompts = [] if options.prompts is None else read_prompts(options.prompts)
    with run_lock(Path(options.out)):
        _serve(options, models, prompts)
    return 0


def _serve(options: ArenaSettings, models: "dict[str, list[Path]]", prompts: "Sequence[Prompt]") -> None:
    from aiohttp import web

    from align.arena.rounds import Arena, ArenaModel
    from align.arena.server import make_app
    from align.arena.votes import VoteFiles
    from align.io.manifest import weights_fingerprint

    address = free_address(options.host, options.port)
    files = VoteFiles(Path(options.out))
    for line in files.repaired:
        print(line, file=sys.stderr)
    loaded = load_chat_models(models, device=options.device.device, sampling=options.sampling)
    members = [ArenaModel(model, weights_fingerprint(models[model.name][0])) for model in loaded]
    arena = Arena(members, files, seed=options.seed, prompts=prompts, system=options.system)

    def announce(*_: object) -> None:
        if options.json:
            print(json.dumps({"url": address.url, "out": options.out, "models": [*models]}), flush=True)
        else:
            print(f"{address.url}\n{', '.join(models)}; votes go to {options.out}. Ctrl-C ends it.", flush=True)
        if options.host not in LOCAL:
            print("align arena: warning: anyone who can reach this machine can vote", file=sys.stderr, flush=True)

    app = make_app(arena, host=options.host)
    web.run_app(
        app,
        host=address.host,
        port=address.port,
        print=announce,
        access_log=None,
        shutdown_timeout=1,
    )
    _report(arena, as_json=options.json)


def _report(arena: "Arena", *, as_json: bool) -> None:
    table = arena.table()
    if as_json:
        print(json.dumps(table, ensure_ascii=False))
        return
    for row in table["pairs"]:
        print(_row(row))


def _row(row: dict[str, Any]) -> str:
    first, second = row["models"]
    if not row["votes"]:
        return f"{first} against {second}: no votes"
    return (
        f"{first} against {second}: {row['win_rate']:.1%} [{row['low']:.1%}, {row['high']:.1%}] of {row['votes']} "
        f"votes ({row['wins'][0]} to {row['wins'][1]}, {row['ties']} ties, {row['both_bad']} both bad)"
    )
