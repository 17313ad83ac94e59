"""generation_config.json: sampling defaults, which pass from a model to what is trained from it."""

import json
from pathlib import Path
from typing import Any

from align.io.json_files import read_object

FILE = "generation_config.json"
_NOT_SAMPLING = ("transformers_version", "_from_model_config", "bos_token_id", "eos_token_id", "pad_token_id")
"""How the file was written, and token ids, which each stage takes from its own tokenizer"""


def sampling_defaults(directory: Path) -> dict[str, Any]:
    """The fields of a directory's generation_config.json other than token ids, such as temperature; {} without one.

    Raises:
        ValueError: the file is not a JSON object.
    """
    path = directory / FILE
    fields = read_object(path) if path.is_file() else {}
    return {name: value for name, value in fields.items() if name not in _NOT_SAMPLING}


def add_sampling_defaults(directory: Path, defaults: dict[str, Any]) -> None:
    """Add fields to a directory's generation_config.json; those that it has stay.

    Raises:
        FileNotFoundError: the directory has no such file.
        ValueError: the file is not a JSON object.
        OSError: the disk is full.
    """
    path = directory / FILE
    path.write_text(json.dumps(defaults | read_object(path), indent=2) + "\n", encoding="utf-8")
