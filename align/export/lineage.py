"""Where a model comes from: the chain of stages, their data, and the licence they hand down."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from align.io.manifest import read_manifest, weights_fingerprint

_LICENCE = re.compile(r"^license:\s*(\S+)\s*$", re.MULTILINE)
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


class Stage(NamedTuple):
    """One stage of the way to a model.

    Attributes:
        manifest: its align.json.
        directory: where it lies, or lay.
        state: ``as recorded``, ``changed since`` (other weights lie there now), ``not on this disk`` or ``unknown``.
    """

    manifest: dict[str, Any]
    directory: str
    state: str


def lineage(manifest: dict[str, Any], directory: Path) -> list[Stage]:
    """The stages that led to a model, the last one first.

    Args:
        manifest: of the model.
        directory: where it lies; recorded paths are relative to where the stages ran, one of the folders above.

    Returns:
        The model itself, its parent, and so on as far as this disk knows.
    """
    stages = [Stage(manifest, str(directory), "as recorded")]
    seen = {str(directory.resolve())}
    while parent := stages[-1].manifest.get("parent"):
        found = _find(parent["directory"], directory)
        if found is None or str(found.resolve()) in seen:
            recorded: dict[str, Any] = {
                "stage": parent.get("stage") or "unknown",
                "parent": None,
                "data": {},
                "recipe": None,
            }
            stages.append(Stage(recorded, parent["directory"], "not on this disk"))
            break
        seen.add(str(found.resolve()))
        written = (found / "align.json").is_file()
        theirs = read_manifest(found) if written else {"stage": "foreign", "parent": None, "data": {}, "recipe": None}
        stages.append(Stage(theirs, parent["directory"], _state(found, parent.get("weights"))))
    return stages


def data_origin(file: str, directory: Path) -> str | None:
    """What is known of a data file from what lies beside it.

    Args:
        file: as the manifest names it.
        directory: of the model; see ``lineage``.

    Returns:
        One phrase, or None.
    """
    found = _find(file, directory)
    if found is None:
        return None
    for note in (found.with_name(f"{found.name}.meta.json"), found.with_name("sandbox.json")):
        if not note.is_file():
            continue
        try:
            told = json.loads(note.read_bytes())
            what, model, judge = told["what"], told.get("model", {}), told.get("judge", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        by = f", sampled from `{model['directory']}`" if model.get("directory") else ""
        judged = f", judged by `{judge['name']}`" if judge.get("name") else ""
        seed = f", seed {told['seed']}" if "seed" in told else ""
        return f"{what}{by}{judged}{seed}"
    return None


def handed_down_licence(stages: list[Stage], directory: Path) -> str | None:
    """The licence that the card of a model, or of the nearest parent that names one, states."""
    for stage in stages:
        found = _find(stage.directory, directory)
        card = found / "README.md" if found else None
        if card and card.is_file() and (named := _stated(card.read_text(encoding="utf-8"))):
            return named
    return None


def licence_files(stages: list[Stage], directory: Path) -> list[Path]:
    """Texts of licences beside a model, or beside the nearest parent that has some."""
    for stage in stages:
        found = _find(stage.directory, directory)
        if texts := sorted(path for path in (found.glob("LICEN[CS]E*") if found else ()) if path.is_file()):
            return texts
    return []


def _stated(card: str) -> str | None:
    front = _FRONT.match(card)
    named = _LICENCE.search(front[1]) if front else None
    return named[1] if named else None


def _find(recorded: str, directory: Path) -> Path | None:
    """A recorded path, from here or from one of the folders above the model."""
    above = directory.resolve().parents
    return next((path for base in (Path(), *above) if (path := base / recorded).exists()), None)


def _state(directory: Path, recorded: str | None) -> str:
    if recorded is None:
        return "unknown"
    try:
        return "as recorded" if weights_fingerprint(directory) == recorded else "changed since"
    except (OSError, ValueError):
        return "unknown"
