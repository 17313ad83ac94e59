"""generation_config.json of an export: the source's sampling defaults and token ids."""

from pathlib import Path
from typing import Any, NamedTuple

from align.export.source import Source
from align.io.generation_config import FILE, add_sampling_defaults, sampling_defaults
from align.io.json_files import read_object


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
    add_sampling_defaults(directory, sampling_defaults(_folder(source, FILE)))


def _fields(source: Source, name: str) -> dict[str, Any]:
    """The fields of a JSON file of the source, or of the base of an adapter."""
    path = _folder(source, name) / name
    return read_object(path) if path.is_file() else {}


def _folder(source: Source, name: str) -> Path:
    """The directory that has a file of the source: its own, or the one of an adapter's base."""
    folders = [source.directory] if source.adapter is None else [source.directory, source.adapter.base]
    return next((folder for folder in folders if (folder / name).is_file()), source.directory)
