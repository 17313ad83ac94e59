"""Reads the JSON files of a model directory."""

import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """The fields of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a JSON object; the message names the file.
    """
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: contains a JSON {type(fields).__name__}; it must contain an object")
    return fields
