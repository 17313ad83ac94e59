"""The record of a run: what was predicted when it began, and what it measured. A file of the run folder, plan.json."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.io.atomic import replacing_file
from align.io.json_files import read_object

FILE = "plan.json"

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Comparison:
    """A quantity, predicted and measured."""

    part: str
    """Such as ``memory.optimizer`` or ``seconds.training``"""
    predicted: float | None
    """Bytes, seconds or tokens; None: it was not predicted"""
    measured: float | None
    """None: it was not measured"""

    @property
    def ratio(self) -> float | None:
        """Predicted over measured; None where one of them is missing or nothing was measured."""
        if self.predicted is None or not self.measured:
            return None
        return self.predicted / self.measured


@dataclass(frozen=True)
class Check:
    """A run's comparisons."""

    run: Path
    stage: str
    finished: bool
    """Whether the run has measured anything"""
    rows: tuple[Comparison, ...]


def write_record(run: Path, record: Mapping[str, Any]) -> None:
    """Write plan.json of a run folder, whole."""
    run.mkdir(parents=True, exist_ok=True)
    with replacing_file(run / FILE) as file:
        json.dump({"schema_version": SCHEMA_VERSION, **record}, file, indent=1)


def read_record(run: Path) -> dict[str, Any]:
    """Read plan.json of a run folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of a newer version.
    """
    path = run / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; `align fit` and `align run` write it when a stage begins to train"
        )
    record = read_object(path)
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version is {version!r}; this version of align reads {SCHEMA_VERSION}")
    for name in ("stage", "predicted"):
        if name not in record:
            raise ValueError(f"{path}: {name} is missing")
    return record


def find_runs(folder: Path) -> list[Path]:
    """The run folders in a folder: itself, or those of a pipeline's stages, in the order in which they began.

    Raises:
        FileNotFoundError: there is none.
    """
    if (folder / FILE).is_file():
        return [folder]
    found = sorted(folder.rglob(FILE), key=lambda path: (read_record(path.parent).get("began", ""), str(path)))
    if not found:
        raise FileNotFoundError(
            f"{folder} has no {FILE}: it is no run folder of align fit, nor the folder of a pipeline"
        )
    return [path.parent for path in found]


def check(run: Path) -> Check:
    """Compare a run's prediction with its measurement.

    Raises:
        FileNotFoundError: the run has no record.
        ValueError: it is damaged.
    """
    record = read_record(run)
    predicted, measured = record["predicted"], record.get("measured")
    return Check(run, record["stage"], measured is not None, tuple(_comparisons(predicted, measured or {})))


def _comparisons(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> Iterator[Comparison]:
    for group in ("memory", "seconds", "tokens"):
        ours, theirs = predicted.get(group) or {}, measured.get(group) or {}
        for name in dict.fromkeys((*ours, *theirs)):
            yield Comparison(f"{group}.{name}", ours.get(name), theirs.get(name))


def as_json(checks: list[Check]) -> dict[str, Any]:
    """Checks as JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [
            {
                "run": str(one.run),
                "stage": one.stage,
                "finished": one.finished,
                "parts": [{**vars(row), "ratio": row.ratio} for row in one.rows],
            }
            for one in checks
        ],
    }


def measured_mfu(run: Path) -> tuple[float, str]:
    """The MFU of a finished run, and the machine's name: predicted FLOPs for measured tokens, over seconds and peak.

    Raises:
        FileNotFoundError: the run has no record.
        ValueError: it has not finished, or predicted no FLOPs.
    """
    record = read_record(run)
    predicted, measured = record["predicted"], record.get("measured")
    if measured is None:
        raise ValueError(f"{run} has not finished, so its MFU is not known")
    if not predicted.get("flops") or not predicted.get("peak_flops"):
        raise ValueError(f"{run} predicted no FLOPs: its length, or its hardware's peak, was unknown")
    share = measured["tokens"]["trained"] / predicted["tokens"]["trained"]
    mfu = predicted["flops"] * share / (measured["seconds"]["total"] * predicted["peak_flops"])
    return float(mfu), str(record["machine"])
