"""A log of samples and scores on disk, from which an interrupted command resumes."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_LONGEST = 40
"""Characters of a value in a message"""


def key_of(*facts: Any) -> str:
    """A key that is determined by these facts (JSON values)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def differences(file: Path, origin: Any) -> str:
    """What rows of a log depend on that is not so now, such as ``seed is 1 (before: 0)``; empty if nothing differs.

    Args:
        file: of the log; it need not exist, or have rows.
        origin: see ``Log``.
    """
    if not file.is_file():
        return ""
    with file.open(encoding="utf-8", errors="replace") as stream:
        head, rest = stream.readline(), stream.readline()
    try:
        stored = dict(_flat(json.loads(head)["origin"], ""))
    except (ValueError, KeyError, TypeError):  # torn, or not written by this command
        return ""
    now = dict(_flat(json.loads(json.dumps(origin)), ""))
    changes = [
        f"{name} is {_short(now.get(name))} (before: {_short(stored.get(name))})"
        for name in dict.fromkeys((*stored, *now))
        if stored.get(name) != now.get(name)
    ]
    return "; ".join(changes) if rest else ""


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, part in value.items():
        yield from _flat(part, f"{name}.{key}" if name else key)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class Log:
    """A JSONL file of rows, one complete batch per line, in order.

    An incomplete batch is dropped, so a resumed command has the same batches as an uninterrupted one.

    Args:
        file: its path; created with the first batch.
        origin: what the rows depend on (JSON values), if the file's name does not encode it; kept in the first line.
            Rows of another origin are discarded.
    """

    def __init__(self, file: Path, *, origin: Any = None) -> None:
        """Read the rows of an earlier run, and drop a batch that it did not complete."""
        self.file = file
        self._head = "" if origin is None else json.dumps({"origin": origin}, sort_keys=True) + "\n"
        self._rows = self._recover() if file.is_file() else 0

    def _recover(self) -> int:
        with self.file.open("rb+") as stream:
            rows = end = 0
            if stream.read(len(self._head)) == self._head.encode():
                end = len(self._head)
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    rows, end = rows + len(json.loads(line)), end + len(line)
            stream.truncate(end)
        return rows

    def __len__(self) -> int:
        """Rows so far."""
        return self._rows

    def __iter__(self) -> Iterator[Any]:
        """The rows in order, read from the file."""
        if not self._rows:
            return
        with self.file.open("rb") as stream:
            stream.seek(len(self._head))
            for line in stream:
                yield from json.loads(line)

    def append(self, rows: Sequence[Any]) -> None:
        """Add a batch."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8", newline="\n") as stream:
            head = "" if stream.tell() else self._head
            stream.write(head + json.dumps(list(rows), ensure_ascii=False) + "\n")
        self._rows += len(rows)

    def remove(self) -> None:
        """Delete the file."""
        self.file.unlink(missing_ok=True)
        self._rows = 0
