"""``align run``: a recipe folder's stages in order, each skipped when nothing it depends on has changed."""

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from align.cli.errors import UsageError, nearest
from align.cli.parsing import make_parser, parse
from align.cli.recipe_folder import Pipeline, Stage, read_pipeline
from align.cli.run_lock import run_lock
from align.cli.shipped_recipes import find_recipe
from align.cli.stage_record import StageRecord, content_hash

_STAGE = "ALIGN_STAGE"
"""Environment variable with the command line of the stage that runs, for the ranks that Lightning starts"""
_PREEMPTED = "preempted.json"
"""What a stage that was asked to leave writes into its folder"""


def main(args: list[str]) -> int:
    """Run the chosen stages of a recipe folder.

    Args:
        args: the command line after ``align run``.

    Returns:
        int: 0 when every stage is done or up to date, and when one was asked to leave (SIGTERM) and can be taken up
            again; 1 when one failed. The later ones are not run then.
    """
    if _STAGE in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        # Lightning starts the other ranks of a stage by the command line of the first: they have that stage to train.
        from align.cli import main as align

        return align(json.loads(os.environ[_STAGE]))
    options = parse(_parser(), args)
    folder, note = find_recipe(Path(options.folder))
    if note:
        print(note, file=sys.stderr, flush=True)
    pipeline = read_pipeline(folder, out=options.out, seed=options.seed, assignments=options.set or [])
    chosen = _choose(pipeline, options.only, getattr(options, "from"))
    must = options.force or getattr(options, "from") is not None
    _asked_to_leave(forget=True)
    with run_lock(pipeline.run):
        for stage in pipeline.stages:
            if stage.name not in chosen:
                continue
            with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
                status, seconds, why = _run_stage(stage, pipeline, must)
            (_report_json if options.json else _report_text)(stage, status, seconds, why)
            if status in ("failed", "preempted") or _asked_to_leave():
                return int(status == "failed")
    models = [stage.writes for stage in pipeline.stages if stage.is_training and stage.writes.exists()]
    if models and not options.json:
        print(f"Try it: align generate {models[-1]} --prompt TEXT", file=sys.stderr)
    return 0


def _parser() -> jsonargparse.ArgumentParser:
    parser = make_parser(
        "run",
        "Run a recipe folder's pipeline.yaml: each stage in order, skipping what is up to date and resuming what is "
        "half done.",
    )
    parser.add_argument(
        "folder",
        help="recipe folder, such as recipes/tiny, or another pipeline in one, such as recipes/tiny/sweep.yaml; a path "
        "that does not exist here is looked up among the shipped recipes (`align recipes`)",
    )
    parser.add_argument("--out", help="where the runs go (default: runs/NAME-OF-THE-FOLDER)")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="run these stages and no others")
    parser.add_argument("--from", metavar="STAGE", help="run this stage and all after it, up to date or not")
    parser.add_argument("--force", action="store_true", help="run every chosen stage, up to date or not")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, initial weights, order and sampling")
    parser.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="a variable of the pipeline, such as text=book.txt"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a stage on stdout (name, status done|up-to-date|failed|preempted, seconds, output); the "
        "rest goes to stderr",
    )
    return parser


Status = Literal["done", "up-to-date", "failed", "preempted"]


def _choose(pipeline: Pipeline, only: list[str] | None, from_: str | None) -> list[str]:
    """The names of the stages to run, in order: optional ones only when they are named."""
    stages = list(pipeline.stages)
    known = list(dict.fromkeys(name for stage in stages for name in (stage.family, stage.name)))
    for name in [*(only or []), *([from_] if from_ else [])]:
        if name not in known:
            raise UsageError(f"{pipeline.file} has no stage {name!r}{nearest(name, known)}; it has {', '.join(known)}")
    if from_:
        first = next(number for number, stage in enumerate(stages) if from_ in (stage.name, stage.family))
        stages = stages[first:]
    named = {*(only or []), from_}
    stages = [stage for stage in stages if not stage.optional or {stage.name, stage.family} & named]
    return [stage.name for stage in stages if not only or {stage.name, stage.family} & {*only}]


def _run_stage(stage: Stage, pipeline: Pipeline, must: bool) -> tuple[Status, float, str]:
    """Run a stage if need be; status, wall seconds and the reason."""
    from align.cli import main

    begun = time.perf_counter()
    for path in stage.reads:
        if not path.exists():
            raise UsageError(f"stage {stage.name!r} of {pipeline.file} reads {path}, which does not exist")
    record = StageRecord(pipeline.run / ".stages" / f"{stage.name}.json")
    fingerprint = stage.fingerprint()
    why = "forced" if must else record.why_stale(fingerprint, stage.writes)
    if why is None:
        return "up-to-date", time.perf_counter() - begun, "inputs, recipe and output are unchanged"
    arguments = list(stage.arguments)
    if stage.is_training:
        if record.half_done(fingerprint) and not must and _can_go_on(stage.folder):
            why = "half done: resuming"
            arguments.append("--ckpt_path=last")
        else:
            _forget(stage.folder)
    print(f"== {stage.name}: {why}", file=sys.stderr, flush=True)
    record.begin(fingerprint)
    os.environ[_STAGE] = json.dumps([*stage.command, *arguments])
    try:
        code = main([*stage.command, *arguments])
    finally:
        del os.environ[_STAGE]
    seconds = time.perf_counter() - begun
    if code:
        if code == 130:
            raise KeyboardInterrupt
        return "failed", seconds, f"align {stage.command[0]} ended with exit code {code}"
    if stage.is_training and (stage.folder / _PREEMPTED).is_file():
        return "preempted", seconds, "it was asked to leave: the same command goes on"
    record.finish(fingerprint, content_hash(stage.writes), seconds)
    return "done", seconds, why


def _can_go_on(folder: Path) -> bool:
    """Whether a half-done stage can go on; where no checkpoint is whole it starts anew, and that is said."""
    from align.training.checkpoint_files import find_whole

    try:
        find_whole(folder / "checkpoints", lambda line: None)  # the stage itself will say it
    except ValueError as error:
        print(f"warning: {error}: the stage starts anew", file=sys.stderr, flush=True)
        return False
    return True


def _asked_to_leave(*, forget: bool = False) -> bool:
    """Whether a signal came in a training stage that was already at its end; nobody listens before the first one."""
    preemption = sys.modules.get("align.training.preemption")
    if preemption is not None and forget:
        preemption.forget()
    return preemption is not None and preemption.asked()


def _forget(folder: Path) -> None:
    """Remove what an earlier try of another recipe left; its model stays until the new one is whole."""
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.csv", "samples.jsonl", "tracking.json", _PREEMPTED):
        (folder / name).unlink(missing_ok=True)


def _report_text(stage: Stage, status: Status, seconds: float, why: str) -> None:
    print(f"== {stage.name}: {status} in {seconds:.1f} s -> {stage.writes} ({why})", file=sys.stderr, flush=True)


def _report_json(stage: Stage, status: Status, seconds: float, why: str) -> None:
    line: dict[str, Any] = {"name": stage.name, "status": status, "seconds": round(seconds, 3)}
    print(json.dumps(line | {"output": str(stage.writes), "why": why}), flush=True)
