"""A model's lineage: the stages that led to it, their data, and the licence it inherits."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.io.manifest import read_manifest, weights_fingerprint
from align.io.provenance import origin_of

_LICENCE = re.compile(r"^license:\s*(\S+)\s*$", re.MULTILINE)
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


class Stage(NamedTuple):
    """A stage in a model's lineage.

    Attributes:
        manifest: its align.json.
        directory: as recorded; it may no longer exist.
        state: ``as recorded``, ``changed since`` (it has other weights now), ``not on this disk`` or ``unknown``.
    """

    manifest: dict[str, Any]
    directory: str
    state: str


def lineage(manifest: dict[str, Any], directory: Path) -> list[Stage]:
    """The stages that led to a model, the last one first.

    Args:
        manifest: of the model.
        directory: of the model; recorded paths are relative to where the stages ran, one of its parent directories.

    Returns:
        The model itself, its parent, and so on, as far as they are on this disk.
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


def title(stages: Sequence[Stage]) -> str:
    """The name of an export: ``dpo of SmolLM2-135M-Instruct``; of a model that no stage trained, its own.

    Args:
        stages: the lineage, the model itself first.
    """
    stage, base = stages[0].manifest["stage"], origin_of(stages[-1].directory)
    if len(stages) == 1:
        return base.name if stage == "foreign" else stage
    return f"{stage} of {base.name}"


def data_origin(file: str, directory: Path) -> str | None:
    """Describe a data file from the metadata beside it.

    Args:
        file: as recorded in the manifest.
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
            meta = json.loads(note.read_bytes())
            what, model, judge = meta["what"], meta.get("model", {}), meta.get("judge", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        by = f", sampled from `{model['directory']}`" if model.get("directory") else ""
        judged = f", judged by `{judge['name']}`" if judge.get("name") else ""
        seed = f", seed {meta['seed']}" if "seed" in meta else ""
        return f"{what}{by}{judged}{seed}"
    return None


def inherited_licence(stages: list[Stage], directory: Path) -> str | None:
    """The licence in the card of a model, or of its nearest parent that states one."""
    for stage in stages:
        found = _find(stage.directory, directory)
        card = found / "README.md" if found else None
        if card and card.is_file() and (named := _stated(card.read_text(encoding="utf-8"))):
            return named
    return None


def licence_files(stages: list[Stage], directory: Path) -> list[Path]:
    """Licence files beside a model, or beside its nearest parent that has any."""
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
    """A recorded path, relative to the working directory or a parent directory of the model."""
    above = directory.resolve().parents
    return next((path for base in (Path(), *above) if (path := base / recorded).exists()), None)


def _state(directory: Path, recorded: str | None) -> str:
    if recorded is None:
        return "unknown"
    try:
        return "as recorded" if weights_fingerprint(directory) == recorded else "changed since"
    except (OSError, ValueError):
        return "unknown"
