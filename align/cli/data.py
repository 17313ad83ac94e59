"""``align data clean``: from raw files to a corpus."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from align.cli.errors import UsageError
from align.cli.parsing import dispatch, parse
from align.io.code import search_working_directory
from align.pipeline.recipes import find_configs
from align.pipeline.run_lock import run_lock

if TYPE_CHECKING:
    from align.curate.cleaning.recipe import CleanRecipe

_NOT_OF_THE_CORPUS = ("config", "executor", "out", "json")
"""Settings that do not change what is made"""


def main(args: list[str]) -> int:
    """Run the sub-verb.

    Args:
        args: the command line after ``align data``.

    Returns:
        int: 0.
    """
    return dispatch("data", {"clean": clean}, args)


def clean(args: list[str]) -> int:
    """Make a corpus.

    Args:
        args: the command line after ``align data clean``.

    Returns:
        int: 0.

    Raises:
        UsageError: the command line or the recipe is wrong, or datatrove is missing.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # datatrove's bars; align has its own
    try:
        from align.curate.cleaning.clean import clean as run
    except ModuleNotFoundError as error:
        raise UsageError(
            f'align data clean needs datatrove ({error}): pip install "lightning-align[curate]"'
        ) from error
    recipe, settings, as_json = read_recipe(args)
    out = Path(recipe.out)
    with run_lock(out):
        done = run(recipe, settings)
    if not done:
        print(f"submitted; {out}/report.md will say what was removed", file=sys.stderr)
        return 0
    report = json.loads((out / "report.json").read_text())
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return 0
    kept, read = report["kept"], report["read"]
    print(
        f"{out}/corpus: {kept['documents']:,} of {read['documents']:,} documents, {kept['bytes'] / 1e6:,.1f} of "
        f"{read['bytes'] / 1e6:,.1f} MB; what each step removed: {out}/report.html"
    )
    return 0


def read_recipe(args: list[str]) -> tuple["CleanRecipe", dict[str, Any], bool]:
    """The recipe, the settings that make a difference to the corpus, and whether to print JSON.

    Args:
        args: the command line after ``align data clean``.

    Raises:
        UsageError: a setting is wrong.
    """
    from align.curate.cleaning.recipe import CleanRecipe

    search_working_directory()  # for users' own steps
    args, notes = find_configs(args)
    for note in notes:
        print(note, file=sys.stderr, flush=True)
    parser = jsonargparse.ArgumentParser(
        prog="align data clean",
        description="Make a corpus from raw files: read, filter, deduplicate, decontaminate, mask; with a report of "
        "what each step removed. The same command continues what was interrupted. docs/corpus.md has an example.",
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode="omegaconf+",
    )
    parser.add_argument("--config", action="config", help="Recipe; may be repeated, later ones win")
    parser.add_argument("--json", action="store_true", help="Print report.json on stdout")
    parser.add_class_arguments(CleanRecipe)
    found = parse(parser, args)
    settings = {name: value for name, value in found.as_dict().items() if name not in _NOT_OF_THE_CORPUS}
    try:
        made = parser.instantiate_classes(found)
        recipe = CleanRecipe(**{field.name: made[field.name] for field in dataclasses.fields(CleanRecipe)})
        return recipe, _plain(settings), made.json
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def _plain(value: Any) -> Any:
    """JSON values."""
    return json.loads(json.dumps(value, default=str))
