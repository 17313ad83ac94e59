"""Command lines generated from settings dataclasses: one frozen dataclass per verb, one flag per field.

The docstring below a field is its ``--help`` text. A field whose type is itself a settings dataclass contributes its
fields as flags of the same level: ``--temperature`` is defined once, in ``SamplingConfig``, for all verbs that sample.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import docstring_parser
import jsonargparse

from align.cli.errors import UsageError
from align.cli.parsing import make_parser, parse

Settings = TypeVar("Settings")


def setting(
    default: Any = dataclasses.MISSING,
    *,
    positional: bool = False,
    repeatable: bool = False,
    flag: str | None = None,
    metavar: str | None = None,
) -> Any:
    """A field whose command-line form its type alone does not determine.

    Args:
        default: of the field; a field without one must be given.
        positional: given by position instead of by flag.
        repeatable: of a tuple: the flag is repeated, instead of followed by several values.
        flag: its name where the field cannot have it, as with Python's keywords.
        metavar: what stands for the value in ``--help``.
    """
    form = {"positional": positional, "repeatable": repeatable, "flag": flag, "metavar": metavar}
    return dataclasses.field(default=default, metadata=form)


def parse_settings(kind: type[Settings], verb: str, args: list[str]) -> Settings:
    """The settings of a verb as its command line gives them.

    Args:
        kind: a settings dataclass; its docstring, up to ``Raises``, describes the verb in ``--help``.
        verb: the words after ``align``.
        args: the rest of the command line.

    Raises:
        UsageError: an argument is unknown or missing, has the wrong type, or the dataclass rejects it.
    """
    parser = make_parser(verb, " ".join((inspect.getdoc(kind) or "").partition("\n\nRaises:")[0].split()))
    add_settings(parser, kind)
    return build_settings(kind, parse(parser, args))


def add_settings(parser: jsonargparse.ArgumentParser, kind: type) -> None:
    """Add the fields of a settings dataclass to a command line.

    Args:
        parser: of the verb.
        kind: the dataclass. Its own fields come first, then those of the dataclasses it is composed of; a name that
            several of them share is one flag.
    """
    nested = []
    known = {action.dest for action in parser._actions}
    texts = {entry.arg_name: entry.description for entry in docstring_parser.parse_from_object(kind).params}
    for field, annotation in _fields(kind):
        if dataclasses.is_dataclass(annotation):
            nested.append(annotation)
        elif _name(field) not in known:
            _add_field(parser, field, annotation, " ".join((texts[field.name] or "").split()))
    for part in nested:
        add_settings(parser, typing.cast(type, part))


def build_settings(kind: type[Settings], namespace: jsonargparse.Namespace) -> Settings:
    """A settings dataclass from a parsed command line.

    Args:
        kind: the dataclass.
        namespace: what a parser with ``add_settings`` returned.

    Raises:
        UsageError: the dataclass rejects a value.
    """
    values: dict[str, Any] = {}
    for field, annotation in _fields(kind):
        if dataclasses.is_dataclass(annotation):
            values[field.name] = build_settings(typing.cast(type, annotation), namespace)
        else:
            value = namespace[_name(field)]
            values[field.name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def require_at_least(settings: object, **least: int) -> None:
    """Check lower limits of integer fields; None passes.

    Args:
        settings: a dataclass.
        **least: field name to its smallest value.

    Raises:
        ValueError: a field is below its limit.
    """
    for name, smallest in least.items():
        value = getattr(settings, name)
        if value is not None and value < smallest:
            raise ValueError(f"{name} is {value}; it must be at least {smallest}")


def _fields(kind: type) -> Sequence[tuple["dataclasses.Field[Any]", Any]]:
    types_of = typing.get_type_hints(kind)
    return [(field, types_of[field.name]) for field in dataclasses.fields(kind)]


def _name(field: "dataclasses.Field[Any]") -> str:
    return field.metadata.get("flag") or field.name


def _add_field(
    parser: jsonargparse.ArgumentParser, field: "dataclasses.Field[Any]", annotation: Any, text: str
) -> None:
    form: dict[str, Any] = {"help": text}
    if field.metadata.get("metavar"):
        form["metavar"] = field.metadata["metavar"]
    required = field.default is dataclasses.MISSING
    if element := _element(annotation):
        form |= {"action": "append"} if field.metadata.get("repeatable") else {"nargs": "+", "type": element}
    elif annotation is bool:
        form["action"] = "store_true"
    else:
        form["type"] = _plain(annotation)
    if field.metadata.get("positional"):
        parser.add_argument(_name(field), **form)
    elif required:
        parser.add_argument(f"--{_name(field)}", required=True, **form)
    else:
        # argparse appends to a copy of the default.
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        parser.add_argument(f"--{_name(field)}", default=default, **form)


def _element(annotation: Any) -> Any:
    """The type of the elements of ``tuple[type, ...]``, optional or not; None for other annotations."""
    alternatives = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    tuples = [kind for kind in alternatives if typing.get_origin(kind) is tuple]
    return typing.get_args(tuples[0])[0] if tuples else None


def _plain(annotation: Any) -> Any:
    """The type to parse: an optional text is a text, so that the word null on a command line is one too."""
    if isinstance(annotation, types.UnionType) and set(typing.get_args(annotation)) == {str, type(None)}:
        return str
    return annotation
