"""Objects that a command line names: by class, or by class and settings, as a recipe would."""

from pathlib import Path
from typing import Any, TypeVar

import yaml

from align.io.code import search_working_directory

Kind = TypeVar("Kind")


def described(name: str, base: type[Kind], *, what: str, example: str) -> Kind:
    """The object that a name, a mapping or a YAML file describes.

    Args:
        name: class name, class path, ``{class_path: CLASS, init_args: {NAME: VALUE}}``, or a YAML file with such a
            mapping.
        base: class that it must be an object of; names of its imported subclasses need no path.
        what: it is, for errors.
        example: a class name, for errors.

    Raises:
        ValueError: there is no such class, or a setting of it is invalid.
    """
    import jsonargparse

    search_working_directory()
    form = f"give {example}, {{class_path: {example}, init_args: {{NAME: VALUE}}}}, or a YAML file with such a mapping"
    try:
        text = Path(name).read_text(encoding="utf-8") if name.endswith((".yaml", ".yml")) else name
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--it", type=base)
        given: Any = parser.parse_object({"it": yaml.safe_load(text)})
        found = parser.instantiate_classes(given).it
    except (OSError, ValueError, TypeError, yaml.YAMLError, jsonargparse.ArgumentError) as error:
        raise ValueError(f"no {what} {name!r}: {' '.join(str(error).split())[:400]}; {form}") from error
    if not isinstance(found, base):
        raise ValueError(f"no {what} {name!r}; {form}")
    return found
