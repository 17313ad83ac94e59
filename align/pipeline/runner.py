"""Runs the stages of a pipeline in order and skips those whose inputs, recipe and output are unchanged."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.io.manifest import MANIFEST, read_manifest, write_manifest
from align.pipeline.recipe_error import RecipeError, nearest
from align.pipeline.stage_record import StageRecord, content_hash
from align.pipeline.stages import Pipeline, Stage

STAGE_VARIABLE = "ALIGN_STAGE"
"""Environment variable with the command line of the running stage, for the ranks that Lightning starts"""
PREEMPTED = "preempted.json"
"""File that a preempted stage writes into its run folder"""
USAGE_ERROR = 2
"""Exit code of a command that rejected its settings before doing anything"""
_OF_ONE_RUN = ("checkpoints", "tensorboard", "metrics.csv", "samples.jsonl", "tracking.json", "plan.json", PREEMPTED)
_ASIDE = ".previous"

Status = Literal["done", "up-to-date", "failed", "preempted"]
Command = Callable[[list[str]], int]
"""Runs an ``align`` command line; returns its exit code"""


class Verdict(NamedTuple):
    """What was found in a stage that is about to train.

    Attributes:
        record: JSON values for the stage's record and its model's manifest.
        refusal: why the stage must not train; None: it may.
    """

    record: dict[str, Any]
    refusal: str | None = None


class Outcome(NamedTuple):
    """How a stage ended.

    Attributes:
        stage: the stage.
        status: done, up-to-date, failed or preempted.
        seconds: wall time.
        reason: why it ran or did not, in one line.
    """

    stage: Stage
    status: Status
    seconds: float
    reason: str


def choose_stages(
    pipeline: Pipeline, *, only: Sequence[str] = (), start: str | None = None, end: str | None = None
) -> list[Stage]:
    """The stages to run, in order.

    Args:
        pipeline: all stages.
        only: names of stages, or of the ``foreach`` families they belong to; empty means all.
        start: leave out the stages before this one.
        end: leave out the stages after this one.

    Returns:
        list[Stage]: optional stages only where ``only``, ``start`` or ``end`` names them.

    Raises:
        RecipeError: the pipeline has no stage of that name, or ``end`` comes before ``start``.
    """
    stages = list(pipeline.stages)
    known = list(dict.fromkeys(name for stage in stages for name in (stage.family, stage.name)))
    for name in (*only, *filter(None, (start, end))):
        if name not in known:
            raise RecipeError(f"{pipeline.file} has no stage {name!r}{nearest(name, known)}; it has {', '.join(known)}")
    first, last = 0, len(stages) - 1
    if start:
        first = min(index for index, stage in enumerate(stages) if start in (stage.name, stage.family))
    if end:
        last = max(index for index, stage in enumerate(stages) if end in (stage.name, stage.family))
    if last < first:
        raise RecipeError(f"{pipeline.file}: --to {end} comes before --from {start}; swap them")
    stages = stages[first : last + 1]
    named = {*only, start, end}
    stages = [stage for stage in stages if not stage.optional or {stage.name, stage.family} & named]
    chosen = [stage for stage in stages if not only or {stage.name, stage.family} & {*only}]
    if only and not chosen:
        raise RecipeError(f"{pipeline.file}: --from {start} and --to {end} leave out all of --only {' '.join(only)}")
    return chosen


def check_inputs(stages: Sequence[Stage], pipeline: Pipeline) -> None:
    """Check what the chosen stages read, before the first of them starts.

    Args:
        stages: the chosen ones, in order.
        pipeline: all stages.

    Raises:
        RecipeError: an input doesn't exist, and no earlier chosen stage writes it.
    """
    for number, stage in enumerate(stages):
        written = {earlier.writes for earlier in stages[:number]}
        for path in stage.reads:
            if not path.exists() and not written & {path, *path.parents}:
                missing = f"stage {stage.name!r} of {pipeline.file} reads {path}, which does not exist"
                raise RecipeError(missing + _how_to_write(path, stage, pipeline))


def run_stage(
    stage: Stage,
    pipeline: Pipeline,
    command: Command,
    *,
    force: bool,
    examine: Callable[[Stage], Verdict] | None = None,
) -> Outcome:
    """Run a stage unless it is up to date; resume it if it was interrupted.

    Args:
        stage: one of the pipeline's.
        pipeline: where its record is kept.
        command: runs the stage's command line.
        force: run it even if it is up to date.
        examine: looks at a stage that is about to train; None: nothing does.

    Raises:
        RecipeError: an input is missing.
        KeyboardInterrupt: the stage was interrupted.
    """
    begun = time.perf_counter()
    check_inputs([stage], pipeline)
    record = StageRecord(pipeline.run / ".stages" / f"{stage.name}.json")
    fingerprint = stage.fingerprint()
    reason = "forced" if force else record.why_stale(fingerprint, stage.writes)
    if reason is None:
        unchanged = "inputs, recipe and output are unchanged"
        return Outcome(stage, "up-to-date", time.perf_counter() - begun, unchanged)
    verdict = examine(stage) if examine is not None and stage.is_training else Verdict({})
    if verdict.refusal is not None:
        return Outcome(stage, "failed", time.perf_counter() - begun, verdict.refusal)
    arguments = list(stage.arguments)
    resumed = False
    if stage.is_training:
        if record.half_done(fingerprint) and not force and _can_resume(stage.folder):
            reason = "interrupted: resuming"
            arguments.append("--ckpt_path=last")
            resumed = True
        else:
            _set_aside(stage.folder)
    print(f"== {stage.name}: running ({reason})", file=sys.stderr, flush=True)
    record.begin(fingerprint, **verdict.record)
    line = [*stage.command, *arguments]
    os.environ[STAGE_VARIABLE] = json.dumps(line)
    try:
        code = command(line)
    finally:
        del os.environ[STAGE_VARIABLE]
    seconds = time.perf_counter() - begun
    if stage.is_training:
        if code == USAGE_ERROR and not resumed:
            # Nothing was trained: a mistake in the recipe must not cost what an earlier run left.
            _put_back(stage.folder)
            record.restore()
        shutil.rmtree(stage.folder / _ASIDE, ignore_errors=True)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        return Outcome(stage, "failed", seconds, f"align {stage.command[0]} exited with code {code}")
    if stage.is_training and (stage.folder / PREEMPTED).is_file():
        return Outcome(stage, "preempted", seconds, "preempted: run the same command again to resume")
    if verdict.record and (stage.writes / MANIFEST).is_file():
        write_manifest(stage.writes, read_manifest(stage.writes) | verdict.record)
    record.finish(fingerprint, content_hash(stage.writes), seconds, **verdict.record)
    return Outcome(stage, "done", seconds, reason)


def _how_to_write(path: Path, stage: Stage, pipeline: Pipeline) -> str:
    """What to run for a missing input of a stage, if another stage that has not run writes it."""
    writer = next((other for other in pipeline.stages if other.writes in (path, *path.parents)), None)
    if writer is None or writer.writes.exists():
        return ""
    return f"; run the stage {writer.name!r} first, or use --to {writer.name if writer.optional else stage.name}"


def preemption_requested(*, forget: bool = False) -> bool:
    """Whether a preemption signal arrived after a training stage ended; signals are caught from the first stage on.

    Args:
        forget: discard the signals of earlier runs first.

    Raises:
        KeyboardInterrupt: the signal was Ctrl-C.
    """
    preemption = sys.modules.get("align.training.preemption")
    if preemption is not None and forget:
        preemption.forget()
    if preemption is not None and preemption.interrupted():
        raise KeyboardInterrupt
    return preemption is not None and preemption.asked()


def _can_resume(folder: Path) -> bool:
    """Whether an interrupted stage has an intact checkpoint; warns if all are damaged, as it then starts over."""
    from align.training.checkpoint_files import find_whole

    try:
        find_whole(folder / "checkpoints", lambda line: None)  # the stage itself reports it
    except ValueError as error:
        print(f"warning: {error}: the stage starts over", file=sys.stderr, flush=True)
        return False
    return True


def _set_aside(folder: Path) -> None:
    """Move the files of an earlier run of another recipe aside, except its model, which the new one will replace."""
    aside = folder / _ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    for name in _OF_ONE_RUN:
        if (folder / name).exists():
            aside.mkdir(exist_ok=True)
            (folder / name).rename(aside / name)


def _put_back(folder: Path) -> None:
    """Undo ``_set_aside``."""
    for name in _OF_ONE_RUN if (folder / _ASIDE).is_dir() else ():
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
        if (folder / _ASIDE / name).exists():
            (folder / _ASIDE / name).rename(folder / name)
