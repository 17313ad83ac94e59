"""``align run``: run a recipe folder's pipeline."""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from align.cli.settings import parse_settings, setting
from align.io.manifest import stage_of
from align.pipeline.recipes import find_recipe
from align.pipeline.run_lock import run_lock
from align.pipeline.runner import (
    STAGE_VARIABLE,
    Outcome,
    Verdict,
    check_inputs,
    choose_stages,
    preemption_requested,
    run_stage,
)
from align.pipeline.stages import Stage, read_pipeline


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Run a recipe folder's pipeline.yaml, stage by stage.

    A stage that is up to date is skipped; one that was interrupted is resumed.
    """

    folder: str = setting(positional=True)
    """Recipe folder, such as recipes/tiny, or another pipeline in one, such as recipes/tiny/sweep.yaml; a path that
    does not exist here is looked up among the shipped recipes (`align recipes`)"""
    out: str | None = None
    """Folder of the runs; null: runs/NAME-OF-THE-FOLDER"""
    config: tuple[str, ...] = setting((), repeatable=True, metavar="OVERLAY")
    """Recipe to merge over that of every training stage, such as recipes/hardware/lora.yaml; may be repeated, later
    ones win"""
    only: tuple[str, ...] = setting((), metavar="STAGE")
    """Run these stages and no others"""
    start: str | None = setting(None, flag="from", metavar="STAGE")
    """Run this stage and all after it, up to date or not"""
    end: str | None = setting(None, flag="to", metavar="STAGE")
    """Run all stages up to this one, and this one, unless they are up to date"""
    force: bool = False
    """Run every chosen stage, up to date or not"""
    doctor: Literal["stop", "warn", "off"] = "stop"
    """Look at the data and settings of each stage before it trains, as `align doctor` does. stop: an error ends the
    run; warn: train all the same, which the stage's manifest records; off: don't look"""
    seed: int = 0
    """Seed of data, initial weights, order and sampling"""
    set: tuple[str, ...] = setting((), repeatable=True, metavar="NAME=VALUE")
    """Value of a variable of the pipeline, such as text=book.txt; may be repeated"""
    json: bool = False
    """Print one JSON object per stage on stdout (name, status done|up-to-date|failed|preempted, seconds, output), and
    everything else on stderr"""

    def __post_init__(self) -> None:
        """Reject a seed that numpy does not take."""
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"--seed is {self.seed}; it must be between 0 and {(1 << 32) - 1}")


def main(args: list[str]) -> int:
    """Run the chosen stages of a recipe folder.

    Args:
        args: the command line after ``align run``.

    Returns:
        int: 0 if every stage is done or up to date, or one was preempted and can be resumed; 1 if one failed, in which
        case later ones are not run.
    """
    # Imported here, because `align.cli` imports this module to run it.
    from align.cli import main as align

    if STAGE_VARIABLE in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        # Lightning starts the other ranks with this process's command line, but they must train the current stage.
        return align(json.loads(os.environ[STAGE_VARIABLE]))
    options = parse_settings(RunSettings, "run", args)
    folder, *overlays = [_found(path) for path in (options.folder, *options.config)]
    pipeline = read_pipeline(folder, out=options.out, seed=options.seed, assignments=options.set, overlays=overlays)
    stages = choose_stages(pipeline, only=options.only, start=options.start, end=options.end)
    check_inputs(stages, pipeline)
    report: Callable[[Outcome], None] = _report_json if options.json else _report_text
    examine = partial(_examine, mode=options.doctor)
    preemption_requested(forget=True)
    with run_lock(pipeline.run):
        for stage in stages:
            with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
                force = options.force or options.start is not None
                outcome = run_stage(stage, pipeline, align, force=force, examine=examine)
            report(outcome)
            if outcome.status in ("failed", "preempted") or preemption_requested():
                return int(outcome.status == "failed")
    trained = [stage.writes for stage in pipeline.stages if stage.is_training and stage.writes.exists()]
    models = [model for model in trained if stage_of(model) != "reward"]
    if models and not options.json:
        print(f"Try it: align generate {models[-1]} --prompt TEXT", file=sys.stderr)
    return 0


def _examine(stage: Stage, *, mode: str) -> Verdict:
    """What the doctor says of a stage; imported here, as stages that don't train don't need it."""
    from align.cli.doctor import NOT_LOOKED, verdict

    return NOT_LOOKED if mode == "off" else verdict(stage, stops=mode == "stop")


def _found(path: str) -> Path:
    """The file or folder that a path means, reported where it is a shipped one."""
    found, note = find_recipe(Path(path))
    if note:
        print(note, file=sys.stderr, flush=True)
    return found


def _report_text(outcome: Outcome) -> None:
    stage, status, seconds, reason = outcome
    # Why a stage ran was said when it began.
    why = "" if status == "done" else f" ({reason})"
    print(f"== {stage.name}: {status} in {seconds:.1f} s -> {stage.writes}{why}", file=sys.stderr, flush=True)


def _report_json(outcome: Outcome) -> None:
    stage, status, seconds, reason = outcome
    record = {"name": stage.name, "status": status, "seconds": round(seconds, 3)}
    print(json.dumps(record | {"output": str(stage.writes), "why": reason}), flush=True)
