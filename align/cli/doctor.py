"""``align doctor``: look at the data and settings of a recipe, or of all stages of a recipe folder, before training."""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from align.cli.errors import UsageError, one_line
from align.cli.settings import parse_settings, setting
from align.pipeline.recipe_error import RecipeError
from align.pipeline.recipes import find_configs, find_recipe
from align.pipeline.runner import Verdict, choose_stages
from align.pipeline.stages import Stage, read_pipeline

if TYPE_CHECKING:
    from align.curate.context import Context
    from align.curate.report import StageReport


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """Look for mistakes in data, masks, tokens and settings before training.

    `align doctor --config RECIPE` takes the settings of `align fit`; `align doctor FOLDER` checks all stages of a
    recipe folder that train. No weights are loaded. Exit code 1 if there is an error.
    """

    folder: str = setting(positional=True)
    """Recipe folder, such as recipes/tiny, or another pipeline in one; instead of --config"""
    out: str | None = None
    """Folder of the runs, as for `align run`; null: runs/NAME-OF-THE-FOLDER"""
    config: tuple[str, ...] = setting((), repeatable=True, metavar="RECIPE")
    """A recipe, and overlays that are merged over it; with a folder, overlays over every recipe"""
    only: tuple[str, ...] = setting((), metavar="STAGE")
    """Check these stages and no others"""
    seed: int = 0
    """Seed, as for `align run`"""
    set: tuple[str, ...] = setting((), repeatable=True, metavar="NAME=VALUE")
    """Value of a variable of the pipeline, as for `align run`; may be repeated"""
    json: bool = False
    """Print the report as JSON on stdout (docs/doctor.md)"""
    html: str | None = None
    """Write the report to this file, as one HTML page"""


def main(args: list[str]) -> int:
    """Check a recipe or a recipe folder.

    Args:
        args: the command line after ``align doctor``.

    Returns:
        int: 1 if there is an error, else 0.

    Raises:
        UsageError: the command line or the recipe is wrong.
    """
    if not args or args[0] in ("-h", "--help") or not args[0].startswith("-"):
        options = parse_settings(DoctorSettings, "doctor", args)
        as_json, page, title = options.json, options.html, options.folder
        with _quiet(as_json):
            reports = _folder(options)
    else:
        rest, page = _take(args, "--html")
        as_json = "--json" in rest
        rest, notes = find_configs([word for word in rest if word != "--json"])
        for note in notes:
            print(note, file=sys.stderr, flush=True)
        title = " ".join(Path(word.removeprefix("--config=")).name for word in rest if word.endswith((".yaml", ".yml")))
        with _quiet(as_json):
            reports = [_checked(rest)[0]]
    return _publish(reports, as_json=as_json, page=page, title=title)


def _take(args: list[str], flag: str) -> tuple[list[str], str | None]:
    """The command line without a flag, and the flag's value.

    Raises:
        UsageError: the value is missing.
    """
    for index, word in enumerate(args):
        if word.startswith(f"{flag}="):
            return args[:index] + args[index + 1 :], word.partition("=")[2]
        if word == flag:
            if index + 1 == len(args):
                raise UsageError(f"{flag} needs a file")
            return args[:index] + args[index + 2 :], args[index + 1]
    return args, None


def _quiet(as_json: bool) -> contextlib.AbstractContextManager[object]:
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _publish(reports: Sequence["StageReport"], *, as_json: bool, page: str | None, title: str) -> int:
    from align.curate.page import as_html
    from align.curate.report import as_json as to_json
    from align.curate.report import print_report

    content = to_json(reports)
    if as_json:
        print(json.dumps(content, ensure_ascii=False))
    else:
        print_report(reports, Console())
    if page is not None:
        Path(page).parent.mkdir(parents=True, exist_ok=True)
        Path(page).write_text(as_html(reports, title=title), encoding="utf-8")
        print(f"wrote {page}", file=sys.stderr)
    return 0 if content["passed"] else 1


def _folder(options: DoctorSettings) -> list["StageReport"]:
    """Reports of the stages that train, in order; optional ones too."""
    from align.curate.report import StageReport

    found = []
    for path in (options.folder, *options.config):
        here, note = find_recipe(Path(path))
        if note:
            print(note, file=sys.stderr, flush=True)
        found.append(here)
    folder, *overlays = found
    pipeline = read_pipeline(folder, out=options.out, seed=options.seed, assignments=options.set, overlays=overlays)
    if options.only:
        choose_stages(pipeline, only=options.only)
    reports, contexts = list[StageReport](), dict[str, "Context"]()
    for stage in pipeline.stages:
        if not stage.is_training or (options.only and not {stage.name, stage.family} & {*options.only}):
            continue
        missing = next((path for path in stage.reads if not path.exists()), None)
        if missing is not None:
            reports.append(StageReport(stage.name, "", not_checked=f"{missing} does not exist yet"))
            continue
        report, context = _checked(list(stage.arguments), name=stage.name, others=dict(contexts))
        reports.append(report)
        if context is not None:
            contexts[stage.name] = context
    if not reports:
        raise RecipeError(f"{pipeline.file} has no stage that trains")
    return reports


def _checked(
    args: list[str], *, name: str = "", others: dict[str, "Context"] | None = None
) -> tuple["StageReport", "Context | None"]:
    """Check one recipe; a stage or data module that rejects its settings is an error of the report."""
    from align.cli.doctor_facts import context_of, read_recipe
    from align.curate.check import Finding
    from align.curate.doctor import Diagnosis
    from align.curate.report import StageReport, report_of

    begun = time.perf_counter()
    try:
        cli = read_recipe(args)
        context = context_of(cli, name=name, others=others)
    except UsageError:
        raise
    except (ValueError, OSError) as error:
        reason = one_line(error) or str(error)
        finding = Finding(reason, "correct the setting")
        seconds = time.perf_counter() - begun
        return StageReport(name or "recipe", "", [Diagnosis("Settings", "error", finding)], seconds=seconds), None
    diagnoses = cli.doctor.examine(context)
    seconds = time.perf_counter() - begun
    return report_of(context, diagnoses, name=name or context.stage, seconds=seconds), context


NOT_LOOKED = Verdict({"doctor": {"looked": False}})
"""Of a stage that was not checked: with ``--doctor off``, or because its recipe can't be built"""


def verdict(stage: Stage, *, stops: bool) -> Verdict:
    """What the doctor says of a stage that ``align run`` is about to train; prints errors and warnings on stderr.

    Nothing of a recipe that can't be built: training says why, with the setting's name.

    Args:
        stage: that trains, and whose inputs exist.
        stops: whether errors keep it from training.
    """
    from align.curate.report import print_report

    try:
        report, context = _checked(list(stage.arguments), name=stage.name)
    except UsageError:
        return NOT_LOOKED
    if context is None:
        return NOT_LOOKED
    counts = report.counts()
    serious = [one for one in report.diagnoses if one.severity != "note"]
    record = {
        "looked": True,
        "errors": counts["error"],
        "warnings": counts["warning"],
        "findings": [f"{one.check}: {one.finding.message}" for one in serious],
        "ignored": bool(counts["error"]) and not stops,
    }
    if serious:
        print_report([replace(report, diagnoses=serious)], Console(stderr=True), samples=False)
    refusal = None
    if counts["error"] and stops:
        first = next(one for one in serious if one.severity == "error")
        refusal = (
            f"align doctor found {counts['error']} error(s), the first: {first.check}: {first.finding.message}; "
            "correct it, or train all the same with --doctor warn"
        )
    return Verdict({"doctor": record}, refusal)
