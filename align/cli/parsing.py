"""Command lines of the verbs other than Lightning's."""

import argparse
import re
from collections.abc import Callable, Mapping

import jsonargparse

from align.cli.errors import UsageError
from align.cli.keys import explain
from align.pipeline.recipe_error import nearest


def make_parser(verb: str, description: str) -> jsonargparse.ArgumentParser:
    """A parser whose ``--help`` shows defaults and which raises mistakes instead of exiting.

    Args:
        verb: the words after ``align``.
        description: shown by ``--help``.

    Returns:
        jsonargparse.ArgumentParser: to add arguments to.
    """
    return jsonargparse.ArgumentParser(
        prog=f"align {verb}", description=description, exit_on_error=False, allow_abbrev=False
    )


def parse(parser: jsonargparse.ArgumentParser, args: list[str]) -> jsonargparse.Namespace:
    """Parse a command line, with a mistake reported in one line.

    Args:
        parser: of the verb.
        args: the rest of the command line.

    Returns:
        jsonargparse.Namespace: flag to value.

    Raises:
        UsageError: an argument is unknown, missing or of the wrong type.
    """
    try:
        return parser.parse_args([_underscored(arg) for arg in args])
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        message = explain(str(error))
        if found := re.search(r"nrecognized arguments: --([\w.]+)", str(error)):
            known = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
            message = f"no setting --{found[1]}{nearest(found[1], known)}"
        raise UsageError(f"{message} (see `{parser.prog} --help`)") from error


def _underscored(arg: str) -> str:
    """``--max-new-tokens=5`` -> ``--max_new_tokens=5``: both spellings are accepted."""
    name, equals, value = arg.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if arg.startswith("--") else arg


def dispatch(verb: str, functions: Mapping[str, Callable[[list[str]], int | None]], args: list[str]) -> int:
    """Run the sub-verb that a command line names.

    Args:
        verb: the words after ``align`` so far.
        functions: sub-verb -> function of the rest of the command line.
        args: the rest of the command line.

    Returns:
        int: exit code.

    Raises:
        UsageError: no such sub-verb.
    """
    names = "|".join(functions)
    if args and args[0] in {"-h", "--help"}:
        print(f"usage: align {verb} {names} [settings]\n\n`align {verb} NAME --help` lists the settings of each.")
        return 0
    if not args or args[0] not in functions:
        given = f"no {verb} verb {args[0]!r}{nearest(args[0], functions)}" if args else "a verb is missing"
        raise UsageError(f"{given}: align {verb} {names}")
    return functions[args[0]](args[1:]) or 0
