"""An engine by name, for commands."""

from pathlib import Path
from typing import Any

import yaml

from align.engines.engine import Engine
from align.engines.ours import Ours

_FORM = "give VLLM, {class_path: VLLM, init_args: {NAME: VALUE}}, or a YAML file with such a mapping"


def load_engine(name: str | None) -> Engine:
    """An engine.

    Args:
        name: class name or class path, a mapping with its settings as a recipe would have it, or a YAML file with one;
            None: our own.

    Raises:
        ValueError: there is no such engine, or a setting of it is invalid.
    """
    import jsonargparse

    if name is None:
        return Ours()
    try:
        file = Path(name)
        text = file.read_text(encoding="utf-8") if name.endswith((".yaml", ".yml")) else name
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--engine", type=Engine)
        given: Any = parser.parse_object({"engine": yaml.safe_load(text)})
        engine = parser.instantiate_classes(given).engine
    except (OSError, ValueError, TypeError, yaml.YAMLError, jsonargparse.ArgumentError) as error:
        raise ValueError(f"no engine {name!r}: {' '.join(str(error).split())[:400]}; {_FORM}") from error
    if not isinstance(engine, Engine):
        raise ValueError(f"no engine {name!r}; {_FORM}")
    return engine
