"""``align run``: run a recipe folder's pipeline."""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jsonargparse

from align.cli.parsing import make_parser, parse
from align.pipeline.recipes import find_recipe
from align.pipeline.run_lock import run_lock
from align.pipeline.runner import STAGE_VARIABLE, Outcome, choose_stages, preemption_requested, run_stage
from align.pipeline.stages import read_pipeline


def main(args: list[str]) -> int:
    """Run the chosen stages of a recipe folder.

    Args:
        args: the command line after ``align run``.

    Returns:
        int: 0 if every stage is done or up to date, or one was preempted and can be resumed; 1 if one failed, in which
        case later ones are not run.
    """
    # `align` runs the stages too; it imports this module by name, so the import stands here.
    from align.cli import main as align

    if STAGE_VARIABLE in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        # Lightning starts the other ranks with this process's command line; they must train the current stage.
        return align(json.loads(os.environ[STAGE_VARIABLE]))
    options = parse(_parser(), args)
    start: str | None = getattr(options, "from")
    folder, note = find_recipe(Path(options.folder))
    if note:
        print(note, file=sys.stderr, flush=True)
    pipeline = read_pipeline(folder, out=options.out, seed=options.seed, assignments=options.set or [])
    stages = choose_stages(pipeline, only=options.only or (), start=start)
    report: Callable[[Outcome], None] = _report_json if options.json else _report_text
    preemption_requested(forget=True)
    with run_lock(pipeline.run):
        for stage in stages:
            with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
                outcome = run_stage(stage, pipeline, align, force=options.force or start is not None)
            report(outcome)
            if outcome.status in ("failed", "preempted") or preemption_requested():
                return int(outcome.status == "failed")
    models = [stage.writes for stage in pipeline.stages if stage.is_training and stage.writes.exists()]
    if models and not options.json:
        print(f"Try it: align generate {models[-1]} --prompt TEXT", file=sys.stderr)
    return 0


def _parser() -> jsonargparse.ArgumentParser:
    parser = make_parser(
        "run",
        "Run a recipe folder's pipeline.yaml: each stage in order, skipping what is up to date and resuming what was "
        "interrupted.",
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


def _report_text(outcome: Outcome) -> None:
    stage, status, seconds, reason = outcome
    print(f"== {stage.name}: {status} in {seconds:.1f} s -> {stage.writes} ({reason})", file=sys.stderr, flush=True)


def _report_json(outcome: Outcome) -> None:
    stage, status, seconds, reason = outcome
    record = {"name": stage.name, "status": status, "seconds": round(seconds, 3)}
    print(json.dumps(record | {"output": str(stage.writes), "why": reason}), flush=True)
