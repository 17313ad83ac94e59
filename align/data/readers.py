"""Read files and Hub data sets record by record, and report bad records by file and line.

JSONL, JSON, CSV and text are parsed here, so that line numbers are exact and a CSV's "007" stays text. Hub data sets
are streamed through ``datasets``; nothing but our cache of tokens is written to disk. Training, the tokenizer trainer
and the commands that take records read them here.
"""

import codecs
import csv
import difflib
import glob
import hashlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.data.json_records import JsonList, Unreadable, parse
from align.data.utf8_files import COMPRESSIONS, open_utf8
from align.io.hub import dataset_commit

OnBadRecord = Literal["stop", "skip"]

_BLOCK = 1 << 20  # bytes of plain text read at a time
_ROWS = 1024  # of a Parquet file read at a time
_COLUMNS_SHOWN = 10  # names of unread columns in a report
_NOTHING: tuple[Any, ...] = (None, "", [], {})


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
    """Stops at the first bad record, or counts bad records; also counts good ones and the columns nobody reads."""

    def __init__(
        self,
        policy: OnBadRecord,
        *,
        hint: str = " (on_bad_record: skip would leave it out)",
    ) -> None:
        """Start with no records.

        Args:
            policy: for bad records.
            hint: ends the error of the policy "stop".
        """
        self.policy, self.hint = policy, hint
        self.count = 0
        """Bad records"""
        self.used = 0
        """Good records"""
        self.first = ""
        """The message of the first bad record"""
        self.place = ""
        """Source and location of the current record"""
        self.unread: Counter[str] = Counter()
        """Column that nothing reads -> number of good records with a value in it"""

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

    def use(self, fields: "ReadFields") -> None:
        """Count a good record and its unread columns."""
        self.used += 1
        self.unread.update(fields.unread())

    def report(self) -> list[str]:
        """A line if records were skipped, and one if columns were not read."""
        lines = [f"skipped {self.count} bad record(s); the first: {self.first}"] if self.count else []
        if self.unread:
            shown = [f"{name!r} ({count:,})" for name, count in self.unread.most_common(_COLUMNS_SHOWN)]
            more = f" and {len(self.unread) - len(shown):,} more" if len(self.unread) > len(shown) else ""
            lines.append(f"columns that are not read, with the records that have them: {', '.join(shown)}{more}")
        return lines


class ReadFields(Mapping[str, Any]):
    """The fields of a record; remembers which values were read. Testing for a name does not count as reading."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        """Start with all fields unread."""
        self._fields = fields
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        """The value of a field."""
        value = self._fields[name]
        self._read.add(name)
        return value

    def peek(self, name: str) -> Any:
        """The value of a field, None without it; it does not count as read."""
        return self._fields.get(name)

    def __contains__(self, name: object) -> bool:
        """Whether there is a field of this name."""
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._fields)

    def __len__(self) -> int:
        """The number of fields."""
        return len(self._fields)

    def unread(self) -> list[str]:
        """Names of fields whose value was not read, without fields that are null or empty."""
        return [name for name, value in self._fields.items() if name not in self._read and value not in _NOTHING]


_KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
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
    """jsonl, json, csv, tsv, parquet, text or hub"""
    commit: str | None = None
    """Of a Hub data set, the one that is read; None: the newest at the time"""

    @property
    def size(self) -> int | None:
        """Bytes of the file on disk; None for a Hub data set."""
        return None if self.kind == "hub" else Path(self.name).stat().st_size

    def pinned(self) -> "Source":
        """The same source; of a Hub data set its newest commit, so that what is fingerprinted is what is read.

        Raises:
            FileNotFoundError: the Hub could not name the commit.
        """
        if self.kind != "hub" or self.commit is not None:
            return self
        return replace(self, commit=dataset_commit(_hub_parts(self.name)["name"]))

    def fingerprint(self) -> str:
        """Identifies the content: the SHA-256 of a file's bytes, the commit of a Hub data set."""
        if self.kind == "hub":
            return f"hub:{self.name}@{self.pinned().commit}"
        with open(self.name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def records(self, bad: BadRecords, *, advance: Callable[[int], None] | None = None) -> Iterator[Record]:
        """Read the records; lines that can't be parsed go to ``bad``.

        Args:
            bad: receives them.
            advance: called with the number of bytes read since the last call, compressed bytes for a compressed file;
                the sum is ``size``.

        Raises:
            ValueError: the file can't be read at all: it is empty, binary, damaged, or not of the type that its suffix
                says.
        """
        if self.kind in ("parquet", "hub"):
            yield from self._parquet(advance) if self.kind == "parquet" else self._hub(advance)
            return
        readers = {"jsonl": self._jsonl, "json": self._json, "csv": self._csv, "tsv": self._csv, "text": self._text}
        file, consumed = open_utf8(self.name)
        with file:
            done = 0
            for record in readers[self.kind](file, bad):
                yield record
                if advance is not None:
                    advance(consumed() - done)
                    done = consumed()

    def text_blocks(self) -> Iterator[str]:
        """The text of a plain file in blocks of about 1 MB that end with a line.

        Raises:
            ValueError: the file is empty, binary, damaged or not UTF-8.
        """
        file, _ = open_utf8(self.name)
        with file:
            offset = 0
            while data := b"".join(file.readlines(_BLOCK)):
                yield self._decoded(data, offset)
                offset += len(data)

    def _text(self, file: io.BufferedReader, bad: BadRecords) -> Iterator[Record]:
        yield Record(self.name, "record 1", {"text": self._decoded(file.read(), 0)})

    def _decoded(self, data: bytes, offset: int) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.name}: not UTF-8 text: byte 0x{data[error.start]:02x} at {offset + error.start}"
            ) from None

    def _jsonl(self, file: io.BufferedReader, bad: BadRecords, hint: str = "") -> Iterator[Record]:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            location = f"line {number}"
            if line.startswith(codecs.BOM_UTF8):
                bad.add(self.name, location, "begins with a byte-order mark, as if files were joined; remove the mark")
                continue
            try:
                value = parse(line.decode("utf-8", "surrogatepass"))
            except json.JSONDecodeError as error:
                opened = " (a file with a list of records is named .json)" if line.strip() == b"[" else hint
                bad.add(self.name, location, f"not JSON: {error.msg} at column {error.colno}{opened}")
            except UnicodeDecodeError as error:
                bad.add(self.name, location, f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}")
            else:
                yield from self._object(value, location, bad)

    def _json(self, file: io.BufferedReader, bad: BadRecords) -> Iterator[Record]:
        if file.peek().lstrip().startswith(b"{"):  # C4 and others name JSON Lines .json
            yield from self._jsonl(file, bad, " (a .json file is a list of records, or one record per line)")
            return
        for number, value in enumerate(JsonList(file, self.name), 1):
            yield from self._object(value, f"record {number}", bad)

    def _csv(self, file: io.BufferedReader, bad: BadRecords) -> Iterator[Record]:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 kB is less than a long document
        rows = csv.reader(self._lines(file), strict=True, delimiter="\t" if self.kind == "tsv" else ",")
        names: list[str] = []
        line = 1
        try:
            for row in rows:
                if row and not names:
                    names = row
                    if repeated := [name for name in names if names.count(name) > 1]:
                        raise ValueError(f"{self.name}: line {line}: two columns are named {repeated[0]!r}; rename one")
                elif len(row) > len(names):
                    bad.add(self.name, f"line {line}", f"more values ({len(row)}) than the {len(names)} columns")
                elif row:
                    yield Record(self.name, f"line {line}", dict(zip_longest(names, row)))
                line = rows.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{self.name}: line {line}: not CSV: {error}") from None

    def _lines(self, file: io.BufferedReader) -> Iterator[str]:
        """Lines with their terminators, as ``csv`` expects them; a lone carriage return also ends a line."""
        number = 1
        for data in file:
            try:
                text = data.decode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{self.name}: line {number}: not UTF-8: byte 0x{data[error.start]:02x} at column {error.start + 1}"
                ) from None
            for line in io.StringIO(text, newline="") if "\r" in text else [text]:
                yield line
                number += 1

    def _object(self, value: Any, location: str, bad: BadRecords) -> Iterator[Record]:
        if isinstance(value, dict):
            yield Record(self.name, location, value)
        elif isinstance(value, Unreadable):
            bad.add(self.name, location, value.reason)
        else:
            bad.add(self.name, location, f"must be an object with fields, found {type(value).__name__}")

    def _parquet(self, advance: Callable[[int], None] | None) -> Iterator[Record]:
        import pyarrow
        import pyarrow.parquet

        # datasets would interpret [1] and :: in a file name as patterns.
        try:
            with pyarrow.parquet.ParquetFile(self.name) as file:
                size, total, number = self.size or 0, file.metadata.num_rows, 0
                for batch in file.iter_batches(batch_size=_ROWS):
                    for fields in batch.to_pylist():
                        number += 1
                        yield Record(self.name, f"record {number}", _without_nulls(fields))
                    if advance is not None:
                        advance(size * number // total - size * (number - len(batch)) // total)
        except (OSError, pyarrow.ArrowException) as error:
            raise self._unreadable(error) from error

    def _hub(self, advance: Callable[[int], None] | None) -> Iterator[Record]:
        import datasets

        parts = _hub_parts(self.name)
        try:
            rows = datasets.load_dataset(
                parts["name"],
                parts["config"],
                split=parts["split"] or "train",
                revision=self.commit,
                streaming=True,
            )
            for number, fields in enumerate(rows, 1):
                yield Record(self.name, f"record {number}", _without_nulls(fields))
                if advance is not None:  # an estimate: datasets does not report bytes
                    advance(sum(len(str(value)) for value in fields.values()))
        except Exception as error:  # datasets, pyarrow and HTTP clients have their own types
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ValueError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return ValueError(f"{self.name}: can't be read as {self.kind}: {reason}")


def _without_nulls(value: Any) -> Any:
    """The value without null keys: Arrow gives every object of a column all keys that occur in any of them."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _hub_parts(name: str) -> dict[str, Any]:
    match = _HUB_ID.fullmatch(name)
    assert match is not None  # or find_sources would not have chosen the kind "hub"
    return match.groupdict()


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
    if _HUB_ID.fullmatch(given) and _suffixes(path)[0] not in _KINDS and not path.parent.is_dir():
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
    suffix, compression = _suffixes(Path(path))
    if suffix not in _KINDS:
        raise ValueError(
            f"{path}: the suffix {suffix + compression!r} is unknown; allowed: {', '.join(_KINDS)}; all but "
            f".parquet may have {' or '.join(COMPRESSIONS)} after it"
        )
    if compression and _KINDS[suffix] == "parquet":
        raise ValueError(f"{path}: a Parquet file is compressed by itself; decompress it and remove {compression}")
    return _KINDS[suffix]


def _suffixes(path: Path) -> tuple[str, str]:
    """The suffix of a file's type and, after it, that of its compression, which may be empty."""
    last = path.suffix.lower()
    return (path.with_suffix("").suffix.lower(), last) if last in COMPRESSIONS else (last, "")
