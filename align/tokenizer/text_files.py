"""Read the texts of files: plain text, JSONL or JSON."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20  # bytes; plain text is read in blocks of about this size that end with a line


def read_texts(paths: Iterable[str | Path], *, field: str = "text") -> Iterator[str]:
    """Read the texts of files in bounded memory.

    Args:
        paths: ``.jsonl`` (one record per line), ``.json`` (a list of records), anything else plain UTF-8 text.
        field: field of a record's text. Of a record without it the contents of ``messages`` are read.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is empty or not UTF-8 text, or a record has no text; names the file and the line or offset.
    """
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        if not path.stat().st_size:
            raise ValueError(f"{path}: the file is empty")
        if path.suffix == ".jsonl":
            yield from _read_jsonl(path, field)
        elif path.suffix == ".json":
            yield from _read_json(path, field)
        else:
            yield from _read_plain(path)


def read_text(path: str | Path) -> str:
    """The text of a plain file; raises the same errors as `read_texts`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return "".join(_read_plain(path))


def _read_plain(path: Path) -> Iterator[str]:
    offset, held = 0, b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            end = block.rfind(b"\n") + 1
            if end:
                yield _decode(held + block[:end], path, offset)
                offset += len(held) + end
                held = block[end:]
            else:
                held += block
    if held:
        yield _decode(held, path, offset)


def _decode(data: bytes, path: Path, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        kind = "a binary file" if b"\0" in data else "not UTF-8 text"
        raise ValueError(
            f"{path}: {kind}: byte 0x{data[error.start]:02x} at offset {offset + error.start} is not UTF-8"
        ) from None


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    with path.open("rb") as file:
        offset = 0
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield from _record_texts(
                    _load(_decode(line, path, offset), f"{path}:{number}"), field, f"{path}:{number}"
                )
            offset += len(line)


def _read_json(path: Path, field: str) -> Iterator[str]:
    records = _load("".join(_read_plain(path)), str(path))
    if not isinstance(records, list):
        raise ValueError(f"{path}: contains {type(records).__name__}; it must contain a list of records")
    for number, record in enumerate(records):
        yield from _record_texts(record, field, f"{path}: record {number}")


def _load(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None


def _record_texts(record: Any, field: str, where: str) -> list[str]:
    if isinstance(record, dict):
        if isinstance(record.get(field), str):
            return [record[field]]
        messages = record.get("messages")
        if isinstance(messages, list) and all(
            isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages
        ):
            return [message["content"] for message in messages]
        raise ValueError(
            f"{where}: field {field!r} has no text, and there are no messages; its fields are {', '.join(record)}"
        )
    raise ValueError(f"{where}: contains {type(record).__name__}; it must be a record")
