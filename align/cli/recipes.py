"""``align recipes``: list the shipped recipe folders, or copy one to edit it."""

import json
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from align.cli.settings import parse_settings, setting
from align.pipeline.recipes import RecipeFolder, copy_folder, shipped_folders


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """List the recipe folders that come with align.

    `align run NAME` runs one; `align recipes copy NAME DIR` copies one to edit.
    """

    json: bool = False
    """Print a JSON list of folders on stdout, with paths"""


@dataclass(frozen=True, kw_only=True)
class CopySettings:
    """Copy a shipped recipe folder into a new folder, to edit it."""

    name: str = setting(positional=True)
    """Recipe folder, such as tiny; `align recipes` lists them"""
    dir: str = setting(positional=True)
    """The new folder; it must not exist"""


def main(args: list[str]) -> int:
    """List the shipped recipes, or copy a folder of them.

    Args:
        args: the command line after ``align recipes``.

    Returns:
        int: 0.

    Raises:
        UsageError: no such folder, or the target of the copy exists.
    """
    return _copy(args[1:]) if args[:1] == ["copy"] else _list(args)


def _list(args: list[str]) -> int:
    if parse_settings(ListSettings, "recipes", args).json:
        print(json.dumps([_as_json(folder) for folder in shipped_folders()], ensure_ascii=False))
        return 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for folder in shipped_folders():
        _print_row(folder.name, folder.summary, width)
        for recipe in folder.recipes:
            _print_row(f"  {recipe.name}", recipe.summary, width)
    print("\nalign run NAME runs a folder; align recipes copy NAME DIR copies one to edit", file=sys.stderr)
    return 0


def _copy(args: list[str]) -> int:
    options = parse_settings(CopySettings, "recipes copy", args)
    target = copy_folder(options.name, Path(options.dir))
    print(f"copied {options.name} to {target}, which writes into runs/{target.resolve().name}")
    return 0


def _as_json(folder: RecipeFolder) -> dict[str, object]:
    recipes = [recipe._asdict() | {"path": str(recipe.path)} for recipe in folder.recipes]
    return folder._asdict() | {"path": str(folder.path), "recipes": recipes}


def _print_row(name: str, summary: str, width: int | None) -> None:
    """One line: the name in a column, and as much of the summary as the terminal has room for."""
    row = f"{name:<28}"
    print(
        row + (summary if width is None else textwrap.shorten(summary, max(width - len(row), 20), placeholder=" ..."))
    )
