"""``align plan``: what a recipe needs before it runs, and predictions against what a run measured."""

import json
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from align.cli.errors import UsageError
from align.cli.settings import parse_settings, require_at_least, setting
from align.pipeline.recipes import find_configs

if TYPE_CHECKING:
    from align.plan.duration import Utilisation
    from align.plan.hardware import Hardware
    from align.plan.job import Job


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Parameters, FLOPs, memory, time and cost of a recipe, without its data or weights.

    `align plan --config RECIPE` takes the settings of `align fit` besides its own. `align plan --check RUN` compares
    what was predicted when a run, or each stage of a pipeline, began with what it measured.

    Raises:
        ValueError: a setting is invalid.
    """

    config: tuple[str, ...] = setting((), repeatable=True, metavar="RECIPE")
    """A recipe, and overlays that are merged over it"""
    hardware: str | None = setting(None, metavar="NAME")
    """h100, h200, a100-80, a100-40, l40s, rtx4090, t4, m3-max or this-cpu, which is measured; null: this-cpu"""
    gpus: int | None = setting(None, metavar="N")
    """Devices; null: the recipe's"""
    mfu: float | None = None
    """Share of the hardware's peak that training reaches; null: that of --like, else measured on this-cpu, else 0.4"""
    like: str | None = setting(None, metavar="RUN")
    """Run folder on the same hardware, whose MFU was measured"""
    response_tokens: int | None = setting(None, metavar="N")
    """Mean length of sampled responses; null: rollout.max_new_tokens"""
    network: tuple[str, ...] = setting((), repeatable=True, metavar="ROLE=DIR")
    """Directory with the config.json of a network (policy, reference, reward, gold, value) instead of what the recipe
    names, such as a model on the Hub that can't be reached"""
    sweep: bool = False
    """Search all hardware with a price, or --hardware, for the cheapest configuration that fits"""
    check: str | None = setting(None, metavar="RUN")
    """Run folder, or folder of a pipeline's runs: print predicted against measured"""
    json: bool = False
    """Print JSON on stdout (docs/plan.md)"""

    def __post_init__(self) -> None:
        """Reject invalid values."""
        require_at_least(self, gpus=1, response_tokens=1)
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is {self.mfu}; it must be above 0 and at most 1")
        for entry in self.network:
            if "=" not in entry:
                raise ValueError(f"network is {entry}; it must be ROLE=DIR, such as policy=llama")


def main(args: list[str]) -> int:
    """Plan a recipe, or check a run.

    Args:
        args: the command line after ``align plan``.

    Raises:
        UsageError: the command line or the recipe is wrong.
    """
    ours, rest = _split(args)
    options = parse_settings(PlanSettings, "plan", ours)
    if options.check is not None:
        return _check(options)
    if not any(word == "--config" or word.startswith("--config=") for word in rest):
        raise UsageError("give --config RECIPE, or --check RUN")
    return _plan(options, rest)


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """The flags of ``PlanSettings``, and those of the recipe."""
    kinds = {f.name: f.type for f in fields(PlanSettings) if f.name != "config"}
    ours, rest, words = list[str](), list[str](), iter(args)
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word in ("-h", "--help"):
            ours.append(word)
        elif not word.startswith("--") or name not in kinds:
            rest.append(word)
        else:
            ours.append(word)
            if "=" not in word and kinds[name] is not bool:
                value = next(words, None)
                ours += [] if value is None else [value]
    return ours, rest


def _plan(options: PlanSettings, rest: list[str]) -> int:
    from align.cli.plan_facts import read_job
    from align.plan import report
    from align.plan.hardware import HERE, find, known, rented
    from align.plan.plan import plan_of
    from align.plan.probe import resident_bytes
    from align.plan.sweep import DEVICES, sweep

    rest, notes = find_configs(rest)
    for note in notes:
        print(note, file=sys.stderr, flush=True)
    networks = dict(entry.split("=", 1) for entry in options.network)
    key = options.hardware or HERE
    if key not in known():
        raise UsageError(f"--hardware is {key!r}; it must be one of {', '.join(known())}")
    job = read_job(
        rest,
        networks=networks,
        devices=options.gpus,
        response_tokens=options.response_tokens,
        on=None if key == HERE else find(key),
    )
    hardware = find(key, width=job.policy.config.width, dtype=job.precision.products)
    if key == HERE and hardware.memory is not None:  # processes share it
        hardware = replace(hardware, memory=hardware.memory // job.strategy.devices)
    # Before steps are timed, which leave memory behind.
    process = (resident_bytes() or 0) if hardware.accelerator == "cpu" else 0
    utilisation = _utilisation(options, job, hardware)
    if options.sweep:
        kinds = [hardware] if options.hardware else rented()
        found = sweep(job, kinds, DEVICES if options.gpus is None else (options.gpus,), utilisation)
        if options.json:
            print(json.dumps({"schema_version": report.SCHEMA_VERSION, "sweep": report.sweep_json(found)}))
        else:
            report.print_sweep(found, Console())
        return 0 if found else 1
    plan = plan_of(job, hardware, utilisation, process=process)
    if options.json:
        print(json.dumps(report.as_json(plan), ensure_ascii=False))
    else:
        report.print_plan(plan, Console())
    return 0


def _utilisation(options: PlanSettings, job: "Job", hardware: "Hardware") -> "Utilisation":
    """The MFU: given, of another run, measured, or assumed.

    Raises:
        UsageError: the other run measured none.
    """
    from align.plan.duration import ASSUMED, Utilisation
    from align.plan.hardware import HERE
    from align.plan.record import measured_mfu

    if options.mfu is not None:
        return Utilisation(options.mfu, "as given by --mfu")
    if options.like is not None:
        try:
            mfu, machine = measured_mfu(Path(options.like))
            if machine != hardware.name:
                raise ValueError(f"{options.like} ran on {machine}, not on {hardware.name}; give --mfu instead")
            return Utilisation(mfu, f"measured by {options.like}")
        except (OSError, ValueError) as error:
            raise UsageError(f"--like: {error}") from error
    peak = hardware.peak(job.precision)
    if hardware.key != HERE or peak is None or options.sweep:
        return ASSUMED
    from align.plan.measure import measure

    print("measuring the MFU of this machine ...", file=sys.stderr, flush=True)
    return measure(job, peak)


def _check(options: PlanSettings) -> int:
    from align.plan import record
    from align.plan.report import print_checks

    try:
        checks = [record.check(run) for run in record.find_runs(Path(options.check or ""))]
    except (OSError, ValueError) as error:
        raise UsageError(f"--check: {error}") from error
    if options.json:
        print(json.dumps(record.as_json(checks)))
    else:
        print_checks(checks, Console())
    return 0
