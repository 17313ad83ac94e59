"""The code of users' classes and functions, by which caches and resumed runs notice that it was edited.

Imports nothing of align, so every room may use it.
"""

import functools
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LIBRARIES = {"align", "lightning", "torch", *sys.stdlib_module_names}
_NAMED = re.compile(r"(?<![\w./])([^\W\d]\w*(?:\.[^\W\d]\w*)*)[.:][^\W\d]\w*")


def search_working_directory() -> None:
    """Make modules in the working directory importable: the installed command, unlike ``python -m``, ignores them."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())


def code_hash(definition: Any) -> str | None:
    """SHA-256 of the modules that define a class or a function.

    Of a class also the modules of its bases, but no modules that these import.

    Args:
        definition: a class, a function, or an instance of a class, such as a callable object or a ``partial``.

    Returns:
        str | None: hexadecimal; None for code of align, Lightning, torch and Python, and for code without a source.
    """
    while isinstance(definition, functools.partial):
        definition = definition.func
    definition = inspect.unwrap(definition) if callable(definition) else definition
    if not (inspect.isclass(definition) or inspect.isroutine(definition)):
        definition = type(definition)
    sources = dict(_sources(definition))
    return hashlib.sha256("\0".join(sources.values()).encode()).hexdigest() if sources else None


def modules_named_in(text: str) -> list[Path]:
    """Files of modules in the working directory that a text names, as ``module.Class`` or ``module:function``.

    Nothing is imported.

    Args:
        text: such as that of a recipe.
    """
    stems = {Path(*name.split(".")) for name in _NAMED.findall(text)}
    files = (file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py"))
    return sorted(file for file in files if file.is_file())


def _sources(definition: Any) -> Iterator[tuple[str, str]]:
    """Name and source of each module."""
    for part in inspect.getmro(definition) if inspect.isclass(definition) else (definition,):
        name = getattr(part, "__module__", None) or ""
        if name.partition(".")[0] in _LIBRARIES:
            continue
        file = getattr(sys.modules.get(name), "__file__", None)
        try:
            # Of code in a notebook only the definition has a source.
            yield name, Path(file).read_text(encoding="utf-8") if file else inspect.getsource(part)
        except (OSError, TypeError):
            continue
