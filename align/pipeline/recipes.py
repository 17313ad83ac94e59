"""The recipe folders that come with align: ``recipes/`` of a clone, ``align/recipes/`` of an installed wheel."""

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import align
from align.pipeline.recipe_error import RecipeError, nearest

_PIPELINE = "pipeline.yaml"
_CONFIG = ("--config", "-c")
_GROUPS = ("trainer", "model", "data")


class Recipe(NamedTuple):
    """One YAML file of a recipe folder.

    Attributes:
        name: file name.
        path: of the file.
        summary: first sentence of its header comment.
    """

    name: str
    path: Path
    summary: str


class RecipeFolder(NamedTuple):
    """A shipped recipe folder.

    Attributes:
        name: folder name, as ``align run`` and ``align recipes copy`` take it.
        path: of the folder.
        summary: first sentence of its pipeline.yaml; what to do with the files where it has none.
        recipes: its YAML files, pipeline.yaml left out.
    """

    name: str
    path: Path
    summary: str
    recipes: list[Recipe]


def shipped_root() -> Path:
    """The folder that holds the shipped recipe folders."""
    package = Path(align.__file__).resolve().parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def shipped_folders() -> Iterator[RecipeFolder]:
    """All shipped recipe folders, by name.

    Yields:
        RecipeFolder: one at a time.
    """
    for folder in sorted(path for path in shipped_root().iterdir() if any(path.glob("*.yaml"))):
        recipes = [Recipe(path.name, path, _summary(path)) for path in sorted(folder.glob("*.yaml"))]
        pipelines = [recipe.summary for recipe in recipes if recipe.name == _PIPELINE]
        summary = pipelines[0] if pipelines else "Overlays: add one to a recipe with a second --config."
        yield RecipeFolder(folder.name, folder, summary, [recipe for recipe in recipes if recipe.name != _PIPELINE])


def copy_folder(name: str, target: Path) -> Path:
    """Copy a shipped recipe folder, to edit it; its YAML files name the copy and a run folder of its own.

    Args:
        name: of the folder; a leading ``recipes/`` is ignored.
        target: the new folder, which must not exist.

    Returns:
        Path: ``target``.

    Raises:
        RecipeError: no such recipe folder, or ``target`` exists.
    """
    names = [folder.name for folder in shipped_folders()]
    plain = name.strip("/").removeprefix("recipes/")
    if plain not in names:
        raise RecipeError(f"no recipe folder {name!r}{nearest(plain, names)}; shipped are {', '.join(names)}")
    if target.exists():
        raise RecipeError(f"{target} already exists; give a new folder")
    copied = Path(shutil.copytree(shipped_root() / plain, target))
    for file in copied.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        for old, new in ((f"recipes/{plain}", str(target)), (f"runs/{plain}", f"runs/{target.resolve().name}")):
            # Not where the name only begins with it, as recipes/tiny-2 does.
            text = re.sub(rf"(?<![\w./-]){re.escape(old)}(?![\w-]|\.\w)", new.replace("\\", r"\\"), text)
        file.write_text(text, encoding="utf-8")
    return copied


def find_recipe(given: Path) -> tuple[Path, str | None]:
    """The file or folder that a name on the command line means.

    A path that exists is taken as it is. Otherwise ``tiny`` and ``recipes/tiny`` alike mean ``recipes/tiny`` of the
    working folder if it exists, and the shipped folder if not; ``hardware/gpu.yaml`` likewise.

    Args:
        given: file or folder as the user wrote it.

    Returns:
        tuple: the path (``given`` itself if nothing matches), and a line that names the path where it differs from
        what was given, else None.
    """
    if given.exists() or given.is_absolute() or ".." in given.parts:
        return given, None
    rest = given.relative_to("recipes") if given.parts[:1] == ("recipes",) else given
    for path, what in ((Path("recipes") / rest, "using"), (shipped_root() / rest, "using the shipped")):
        if rest.parts and path.exists():
            return path, f"{given} does not exist here; {what} {path}"
    return given, None


class _Loader(yaml.SafeLoader):
    """Rejects a mapping in which a key occurs twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)


def read_recipe(file: Path) -> dict[str, Any]:
    """The settings of a recipe, an overlay or a pipeline.yaml, as they are written.

    Raises:
        RecipeError: the file is not YAML or not a mapping, a key occurs twice, or a group of settings is null.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{file} must be a mapping of settings, found {type(content).__name__}")
    for group in _GROUPS:
        if group in content and content[group] is None:
            raise RecipeError(f"{file}: {group} is null; give it settings, or leave it out")
    return content


def find_configs(args: list[str]) -> tuple[list[str], list[str]]:
    """Apply :func:`find_recipe` to every ``--config`` of a command line, and check the files with :func:`read_recipe`.

    Args:
        args: the command line after the verb.

    Returns:
        tuple: the command line with each path found, and a line for each path that differs from what was given.
    """
    found, notes = [], []
    for before, word in itertools.pairwise(["", *args]):
        flag, equals, value = word.partition("=")
        if before in _CONFIG:
            flag, equals, value = "", "", word
        elif flag not in _CONFIG or not equals:
            found.append(word)
            continue
        path, note = find_recipe(Path(value))
        if path.is_file():
            read_recipe(path)
        found.append(flag + equals + str(path))
        notes += [note] if note else []
    return found, notes


def _summary(file: Path) -> str:
    """First sentence of a YAML's header comment, on one line."""
    lines = []
    for line in file.read_text().splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text or text.startswith("align "):
            break
        lines.append(text)
    return re.split(r"(?<=[.!?]) ", " ".join(lines), maxsplit=1)[0]
