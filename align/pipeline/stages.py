"""Reads a recipe folder's pipeline.yaml and substitutes the command line's values."""

import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.io.code import modules_named_in
from align.pipeline.recipe_error import RecipeError, nearest
from align.pipeline.recipes import read_recipe, shipped_root
from align.pipeline.stage_record import content_hash

_STAGE_KEYS = {"command", "recipe", "overlays", "arguments", "reads", "writes", "optional", "foreach"}
_DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".txt", ".gz", ".zst")
_FOLDER_KEYS = {"variables", "stages"}


@dataclass(frozen=True)
class Stage:
    """A stage of a pipeline, everything resolved."""

    name: str
    family: str
    """The name in the file, shared by all stages of one ``foreach``"""
    command: tuple[str, ...]
    """Words after ``align``, such as ("tokenizer", "train")"""
    recipe: Path | None
    """The --config of a training stage"""
    arguments: tuple[str, ...]
    """The rest of the command line"""
    reads: tuple[Path, ...]
    """Input files and directories"""
    writes: Path
    """Output file or directory"""
    optional: bool = False
    """Run only when --only, --from or --to names it"""
    overlays: tuple[Path, ...] = ()
    """Recipes merged over ``recipe``, in order"""

    @property
    def is_training(self) -> bool:
        """Whether it is trained, and so resumed from checkpoints."""
        return self.command == ("fit",)

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.writes.parent

    def with_overlays(self, overlays: Sequence[Path]) -> "Stage":
        """The same stage with further recipes merged over its own."""
        own = 1 + len(self.overlays)
        added = [_config(path) for path in overlays]
        arguments = (*self.arguments[:own], *added, *self.arguments[own:])
        return replace(self, overlays=(*self.overlays, *overlays), arguments=arguments)

    def fingerprint(self) -> str:
        """SHA-256 over the command, the text of the recipe and its overlays, and the contents of what it reads.

        It reads what ``reads`` lists, and modules in the working directory whose classes or functions it names.
        """
        recipes = [] if self.recipe is None else [self.recipe, *self.overlays]
        paths = [_config(path) for path in recipes]
        facts = {
            "command": self.command,
            # Recipes count by their text: a copy in another folder leaves a finished run up to date.
            "arguments": [argument for argument in self.arguments if argument not in paths],
            "recipes": [content_hash(path) for path in recipes],
            "reads": [content_hash(path) for path in (*self.reads, *self._modules(recipes))],
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _modules(self, recipes: Sequence[Path]) -> list[Path]:
        return modules_named_in("\n".join([*self.arguments, *(path.read_text() for path in recipes if path.is_file())]))


@dataclass(frozen=True)
class Pipeline:
    """The stages of a recipe folder, in order."""

    file: Path
    run: Path
    """Where the runs go"""
    stages: tuple[Stage, ...]


def read_pipeline(
    folder: Path, *, out: str | None, seed: int, assignments: Sequence[str], overlays: Sequence[Path] = ()
) -> Pipeline:
    """Read a folder's pipeline.yaml and substitute the command line's values.

    Args:
        folder: the recipe folder, or another pipeline's file in one; ``${folder}`` becomes the folder.
        out: where the runs go; None: runs/NAME.
        seed: becomes ``${seed}``.
        assignments: ``NAME=VALUE`` of variables that the pipeline declares.
        overlays: recipes to merge over that of every training stage; later ones win, and a stage's own ``arguments``
            win over all.

    Returns:
        Pipeline: with every ``${...}`` replaced.

    Raises:
        RecipeError: no such folder, a wrong key, a variable that is unknown, missing or malformed, an overlay that does
            not exist, or overlays for a pipeline that trains nothing.
    """
    file = folder if folder.suffix == ".yaml" else folder / "pipeline.yaml"
    folder = file.parent
    if not file.is_file():
        found = {path.parent.name for root in (folder.parent, shipped_root()) for path in root.glob("*/pipeline.yaml")}
        raise RecipeError(f"{file} does not exist{nearest(folder.name, sorted(found))}")
    content = read_recipe(file)
    if not isinstance(content.get("stages"), dict):
        problem = f"{file} must be a mapping with the key 'stages', itself a mapping of stages"
        if {"model", "data"} & {*content}:
            problem = f"{file} is the recipe of one stage: give it to align fit or align doctor as --config {file}"
        raise RecipeError(problem)
    _check_keys(content, _FOLDER_KEYS, str(file))
    run = Path(out) if out else Path("runs") / folder.resolve().name
    known = {"run": str(run), "seed": str(seed), "folder": str(folder)}
    variables = _variables(file, content.get("variables") or {}, assignments)
    given = {f"${{{name}}}": Path(value) for name, value in variables.items() if _is_path(value)}
    values = variables | known
    stages = [stage for name, body in content["stages"].items() for stage in _stages(file, name, body, values, given)]
    return Pipeline(file, run, tuple(_overlaid(file, stages, overlays)))


def _overlaid(file: Path, stages: Sequence[Stage], overlays: Sequence[Path]) -> Sequence[Stage]:
    """The stages, with the overlays added to those that train."""
    for overlay in overlays:
        if not overlay.is_file():
            raise RecipeError(f"--config {overlay}: no such file; `align recipes` lists the shipped overlays")
        read_recipe(overlay)
    if overlays and not any(stage.is_training for stage in stages):
        raise RecipeError(f"--config {overlays[0]}: {file} has no training stage to apply it to")
    return [stage.with_overlays(overlays) if stage.is_training else stage for stage in stages]


def _variables(file: Path, declared: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, str]:
    """Values of the declared variables; one declared as null must be given."""
    values = {name: None if default is None else str(default) for name, default in declared.items()}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment}: it must be NAME=VALUE")
        if name not in values:
            names = ", ".join(values) or "none"
            raise RecipeError(
                f"--set {assignment}: {file} has no variable {name!r}{nearest(name, values)}; it has {names}"
            )
        values[name] = value
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise RecipeError(f"{file} needs a value: give " + " ".join(f"--set {name}=VALUE" for name in missing))
    return {name: value for name, value in values.items() if value is not None}


def _is_path(value: str) -> bool:
    """Whether a variable's value is a file or folder, or the name of a data file that does not exist."""
    return os.path.exists(value) or (value.endswith(_DATA_SUFFIXES) and not glob.has_magic(value))


def _stages(file: Path, name: str, body: Any, values: Mapping[str, str], given: Mapping[str, Path]) -> Iterator[Stage]:
    """The stage, or one for each combination of the values that ``foreach`` lists.

    A stage also reads what its arguments name by a variable: ``given`` has the variables whose values are paths, not
    ids on the Hub.
    """
    where = f"{file}: stage {name!r}"
    if not isinstance(body, dict) or "command" not in body or "writes" not in body:
        raise RecipeError(f"{where} must be a mapping with at least 'command' and 'writes'")
    _check_keys(body, _STAGE_KEYS, where)
    loops = body.get("foreach") or {}
    if not isinstance(loops, dict) or not all(isinstance(items, list) and items for items in loops.values()):
        raise RecipeError(f"{where}: foreach is {loops!r}: it must be a mapping of variables to lists of values")
    named = json.dumps(body.get("arguments") or {})
    # What does not exist is an input only where the variable is the whole argument, and not a part of a path.
    inputs = [path for name, path in given.items() if (name if path.exists() else f'"{name}"') in named]
    body = {key: value for key, value in body.items() if key != "foreach"}
    for items in itertools.product(*loops.values()):
        chosen = {variable: str(item) for variable, item in zip(loops, items, strict=True)}
        full = "-".join([name, *(f"{variable}={item}" for variable, item in chosen.items())])
        yield _stage(file, full, name, _substitute(body, {**values, **chosen}, where), {**values, **chosen}, inputs)


def _stage(
    file: Path,
    name: str,
    family: str,
    body: Mapping[str, Any],
    values: Mapping[str, str],
    inputs: Sequence[Path],
) -> Stage:
    where = f"{file}: stage {name!r}"
    command = tuple(str(body["command"]).split())
    recipe = file.parent / body["recipe"] if "recipe" in body else None
    overlays = tuple(file.parent / overlay for overlay in _overlays(body, where))
    arguments = [_config(path) for path in (recipe, *overlays) if path is not None]
    arguments += [f"--run={values['run']}", f"--seed_everything={values['seed']}"] if recipe else []
    for key, value in (body.get("arguments") or {}).items():
        arguments += _argument(key, value, flags=recipe is None)
    reads = tuple(dict.fromkeys([*map(Path, body.get("reads") or []), *inputs]))
    optional = body.get("optional", False)
    if not isinstance(optional, bool):
        raise RecipeError(f"{where}: optional is {optional!r}: it must be true or false")
    return Stage(name, family, command, recipe, tuple(arguments), reads, Path(body["writes"]), optional, overlays)


def _overlays(body: Mapping[str, Any], where: str) -> list[str]:
    """Names of the recipes to merge over the stage's own."""
    overlays = body.get("overlays", [])
    if not isinstance(overlays, list) or not all(isinstance(overlay, str) for overlay in overlays):
        raise RecipeError(f"{where}: overlays is {overlays!r}: it must be a list of recipes")
    if overlays and "recipe" not in body:
        raise RecipeError(f"{where}: overlays is set, but there is no recipe to merge them over")
    return overlays


def _config(path: Path) -> str:
    return f"--config={path}"


def _argument(key: str, value: Any, *, flags: bool) -> list[str]:
    """A setting as command-line words; the key '-' holds positional arguments.

    The verbs of align take flags (``--raw``) and several words per flag; settings of a recipe take one value each.
    """
    if key == "-":
        return [str(item) for item in (value if isinstance(value, list) else [value])]
    if flags and isinstance(value, bool):
        return [f"--{key}"] if value else []
    if flags and isinstance(value, list):
        return [f"--{key}", *map(str, value)] if value else []
    text = json.dumps(value) if isinstance(value, list | dict | bool | None) else str(value)
    return [f"--{key}={text}"]


def _substitute(value: Any, values: Mapping[str, str], where: str) -> Any:
    """Replace every ``${name}``, at any depth."""
    if isinstance(value, dict):
        return {key: _substitute(item, values, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, values, where) for item in value]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise RecipeError(f"{where}: no variable ${{{match[1]}}}{nearest(match[1], values)}")
        return values[match[1]]

    return re.sub(r"\$\{(\w+)\}", look_up, value)


def _check_keys(body: Mapping[str, Any], valid: set[str], where: str) -> None:
    for key in body:
        if key not in valid:
            raise RecipeError(
                f"{where}: no key {key!r}{nearest(str(key), valid)}; valid keys: {', '.join(sorted(valid))}"
            )
