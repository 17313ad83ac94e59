"""The settings of a class, as its constructor declares them."""

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any


def settings_of(kind: type) -> Mapping[str, inspect.Parameter]:
    """The parameters of a constructor by name, with resolved annotations.

    Args:
        kind: a class; where its constructor passes ``**kwargs`` on, those of the base class are included.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        constructor: Any = vars(base)["__init__"]
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        hints = typing.get_type_hints(constructor)
        found = {
            each.name: each.replace(annotation=hints.get(each.name, Any))
            for each in parameters
            if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        } | found
        if all(each.kind != each.VAR_KEYWORD for each in parameters):
            break
    return found


def classes_in(annotation: Any) -> list[type]:
    """The classes among the alternatives of an annotation, None left out."""
    return [each for each in _alternatives(annotation) if isinstance(each, type) and each is not types.NoneType]


def admits_null(annotation: Any) -> bool:
    """Whether null is a value of an annotation."""
    return bool({Any, None, types.NoneType} & {*_alternatives(annotation)})


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)
