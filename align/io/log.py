"""A log of finished work, such as samples and scores, so that a killed or failed run resumes where it stopped."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def key_of(*values: Any) -> str:
    """A file name for a result that depends on these JSON values alone."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


class Log:
    """A JSONL file with one batch of rows per line, in order.

    A batch is either whole or absent, so a resumed run makes the same batches as an uninterrupted one.

    Args:
        file: its path; created when the first batch is appended.
        origin: the JSON values that the rows depend on, if the file's name does not determine them; kept in the first
            line. Rows of another origin are discarded.
    """

    def __init__(self, file: Path, *, origin: Any = None) -> None:
        """Read what an earlier run left, and truncate a batch that it was writing when it was killed."""
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
        """Number of rows."""
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
        """Append a batch, which then survives the process."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8", newline="\n") as stream:
            head = "" if stream.tell() else self._head
            stream.write(head + json.dumps(list(rows), ensure_ascii=False) + "\n")
        self._rows += len(rows)

    def remove(self) -> None:
        """Delete the file."""
        self.file.unlink(missing_ok=True)
        self._rows = 0
