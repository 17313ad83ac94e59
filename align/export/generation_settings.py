"""generation_config.json of an export: the source's sampling defaults and token ids."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from align.export.source import Source

FILE = "generation_config.json"
_OF_THE_FILE = ("transformers_version", "_from_model_config")
"""Fields that tell how the source's file was written"""


class SpecialIds(NamedTuple):
    """Token ids that an export's config.json and generation_config.json name.

    Attributes:
        bos: starts a text.
        eos: end a response.
        pad: pads rows.
    """

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def special_ids(source: Source) -> SpecialIds:
    """The source's own ids; where its files name none, the tokenizer's. Tokens that end a response are those of both.

    Raises:
        ValueError: a file is not a JSON object.
    """
    named = _fields(source, "config.json") | _fields(source, FILE)
    tokenizer = source.tokenizer
    own = named.get("eos_token_id")
    eos = [] if own is None else own if isinstance(own, list) else [own]
    bos, pad = named.get("bos_token_id"), named.get("pad_token_id")
    return SpecialIds(
        tokenizer.bos_id if bos is None else bos,
        tuple(dict.fromkeys((*eos, *tokenizer.stop_ids))),
        tokenizer.pad_id if pad is None else pad,
    )


def write_generation_config(source: Source, directory: Path) -> None:
    """Add the fields of the source's generation_config.json, such as temperature, to the one in a directory.

    Raises:
        ValueError: the source's file is not a JSON object.
        OSError: the disk is full.
    """
    path = directory / FILE
    kept = {name: value for name, value in _fields(source, FILE).items() if name not in _OF_THE_FILE}
    fields = kept | json.loads(path.read_bytes())
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _fields(source: Source, name: str) -> dict[str, Any]:
    """The fields of a JSON file of the source, or of the base of an adapter."""
    folders = [source.directory] if source.adapter is None else [source.directory, source.adapter.base]
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        return {}
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: contains a JSON {type(fields).__name__}; it must contain an object")
    return fields
