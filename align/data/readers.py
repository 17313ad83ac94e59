"""Read files and Hub data sets record by record, and report bad records by file and line.

JSONL, JSON, CSV and text are parsed here, so that line numbers are exact and a CSV's "007" stays text. Parquet and the
Hub are streamed through ``datasets``; nothing but our cache of tokens is written to disk.
"""

import csv
import difflib
import glob
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

OnBadRecord = Literal["stop", "skip"]


class Record(NamedTuple):
    """One record of a source.

    Attributes:
        source: path or Hub id, as given.
        location: "line 3" or "record 3", counted from 1.
        fields: field name -> value.
    """

    source: str
    location: str
    fields: dict[str, Any]


class BadRecordError(ValueError):
    """A record can't be used; names the file, the line, the field and the reason."""


class BadRecords:
    """Stops at the first bad record, or counts them and keeps the first message."""

    def __init__(self, policy: OnBadRecord, *, hint: str = " (on_bad_record: skip would leave it out)") -> None:
        """Start with no bad records; ``hint`` ends the error of the policy "stop"."""
        self.policy, self.hint = policy, hint
        self.count = 0
        self.first = ""

    def add(self, source: str, location: str, reason: str) -> None:
        """Report a bad record.

        Raises:
            BadRecordError: the policy is "stop".
        """
        message = f"{source}: {location}: {reason}"
        if self.policy == "stop":
            raise BadRecordError(message + self.hint)
        self.count += 1
        self.first = self.first or message

    def report(self) -> list[str]:
        """A line if records were skipped, else none."""
        return [f"skipped {self.count} bad record(s); the first: {self.first}"] if self.count else []


_KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}

_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")


@dataclass(frozen=True)
class Source:
    """A file or a Hub data set."""

    name: str
    """Path or Hub id, as found"""
    kind: str
    """jsonl, json, csv, parquet, text or hub"""

    @property
    def size(self) -> int | None:
        """Bytes of text, or None where that is unknown before reading."""
        return None if self.kind in ("parquet", "hub") else Path(self.name).stat().st_size

    def fingerprint(self) -> str:
        """Identifies the content: the SHA-256 of a file's bytes, the commit of a Hub data set."""
        if self.kind == "hub":
            from huggingface_hub import HfApi

            return f"hub:{self.name}@{HfApi().dataset_info(_hub_parts(self.name)['name']).sha}"
        with open(self.name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def records(self, bad: BadRecords) -> Iterator[Record]:
        """Read the records; lines that can't be parsed go to ``bad``.

        Raises:
            ValueError: the file can't be read at all: it is empty, binary, or not of the type that its name says.
        """
        if self.kind in ("parquet", "hub"):
            return self._through_datasets()
        _refuse_unreadable(Path(self.name))
        readers = {"jsonl": self._jsonl, "json": self._json, "csv": self._csv, "text": self._text}
        return readers[self.kind](bad)

    def _text(self, bad: BadRecords) -> Iterator[Record]:
        try:
            text = Path(self.name).read_bytes().decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.name}: not UTF-8 text: byte 0x{error.object[error.start]:02x} at {error.start}"
            ) from None
        yield Record(self.name, "record 1", {"text": text})

    def _jsonl(self, bad: BadRecords) -> Iterator[Record]:
        with open(self.name, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                location = f"line {number}"
                try:
                    fields = json.loads(line)
                except json.JSONDecodeError as error:
                    bad.add(self.name, location, f"not JSON: {error.msg} at column {error.colno}")
                    continue
                except UnicodeDecodeError as error:
                    bad.add(
                        self.name,
                        location,
                        f"not UTF-8: byte 0x{error.object[error.start]:02x} at column {error.start + 1}",
                    )
                    continue
                yield from self._object(fields, location, bad)

    def _json(self, bad: BadRecords) -> Iterator[Record]:
        try:
            content = json.loads(Path(self.name).read_bytes())
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name}: not UTF-8 at byte {error.start}") from None
        except json.JSONDecodeError as error:
            hint = " (a file with one object per line is named .jsonl)" if error.msg == "Extra data" else ""
            raise ValueError(f"{self.name}: line {error.lineno}: not JSON: {error.msg}{hint}") from None
        if not isinstance(content, list):
            raise ValueError(f"{self.name}: must contain a list of records, found {type(content).__name__}")
        for number, fields in enumerate(content, 1):
            yield from self._object(fields, f"record {number}", bad)

    def _csv(self, bad: BadRecords) -> Iterator[Record]:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 kB is less than a long document
        with open(self.name, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            line = 1
            try:
                line = reader.line_num + 1 if reader.fieldnames else line
                for fields in reader:
                    if None in fields:
                        bad.add(
                            self.name, f"line {line}", f"more values than the {len(reader.fieldnames or [])} columns"
                        )
                    else:
                        yield Record(self.name, f"line {line}", fields)
                    line = reader.line_num + 1
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{self.name}: line {line}: not CSV: {error}") from None

    def _object(self, fields: Any, location: str, bad: BadRecords) -> Iterator[Record]:
        if isinstance(fields, dict):
            yield Record(self.name, location, fields)
        else:
            bad.add(self.name, location, f"must be an object with fields, found {type(fields).__name__}")

    def _through_datasets(self) -> Iterator[Record]:
        import datasets

        try:
            if self.kind == "parquet":
                rows = datasets.load_dataset("parquet", data_files=self.name, split="train", streaming=True)
            else:
                parts = _hub_parts(self.name)
                rows = datasets.load_dataset(
                    parts["name"], parts["config"], split=parts["split"] or "train", streaming=True
                )
            for number, fields in enumerate(rows, 1):
                yield Record(self.name, f"record {number}", fields)
        except Exception as error:  # datasets, pyarrow and HTTP clients have their own types
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{self.name}: can't be read as {self.kind}: {reason}") from error


def _hub_parts(name: str) -> dict[str, Any]:
    match = _HUB_ID.fullmatch(name)
    assert match is not None  # or find_sources would not have chosen the kind "hub"
    return match.groupdict()


def _refuse_unreadable(path: Path) -> None:
    """Reject empty and binary files before a parser complains about something unrelated."""
    with open(path, "rb") as file:
        head = file.read(8192)
    if not head:
        raise ValueError(f"{path}: the file is empty")
    if b"\0" in head:
        raise ValueError(f"{path}: a binary file (a zero byte at {head.index(0)}), not {path.suffix or 'text'}")


def find_sources(given: str | Sequence[str]) -> list[Source]:
    """Resolve paths, globs and Hub ids (``owner/name``, ``owner/name:split``, ``owner/name@config:split``).

    Args:
        given: one or several; files of a glob are sorted by name.

    Returns:
        list[Source]: all sources, in order.

    Raises:
        FileNotFoundError: a file does not exist; suggests the one with the most similar name.
        ValueError: the suffix of a file is unknown.
    """
    return [source for one in ([given] if isinstance(given, str) else given) for source in _find(str(one))]


def _find(given: str) -> list[Source]:
    if Path(given).is_file():
        return [Source(given, _kind(given))]
    if matches := sorted(path for path in glob.glob(given, recursive=True) if Path(path).is_file()):
        return [Source(path, _kind(path)) for path in matches]
    path = Path(given)
    if _HUB_ID.fullmatch(given) and path.suffix not in _KINDS and not path.parent.is_dir():
        return [Source(given, "hub")]
    if path.is_dir():
        raise FileNotFoundError(f"{given}: is a folder; give its files, for example {given.rstrip('/')}/*.jsonl")
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    names = [entry.name for entry in parent.iterdir()]
    near = difflib.get_close_matches(path.relative_to(parent).parts[0], names, 1, cutoff=0.4)
    hint = f"did you mean {parent / near[0]}?" if near else f"no similar name in {parent.resolve()}"
    raise FileNotFoundError(f"{given}: no such file; {hint}")


def _kind(path: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in _KINDS:
        raise ValueError(f"{path}: the suffix {suffix!r} is unknown; allowed: {', '.join(_KINDS)}")
    return _KINDS[suffix]
