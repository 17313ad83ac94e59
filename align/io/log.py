"""A log of samples and scores on disk, from which an interrupted command resumes."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def key_of(*facts: Any) -> str:
    """A key that is determined by these facts (JSON values)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


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
