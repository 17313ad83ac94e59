"""What has been sampled and scored so far, on disk: a killed or failed run goes on where it stopped."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def key_of(*facts: Any) -> str:
    """A name for whatever depends on these facts alone (JSON values)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


class Log:
    """A JSONL file of rows in whole batches, one a line, in order.

    A batch is whole or not there, so the batches after a killed run are those of an uninterrupted one.

    Args:
        file: where it lies; begun when the first batch is added.
        origin: what the rows depend on (JSON values), where the file's name does not say it; kept in the first line,
            and rows of another origin are thrown away.
    """

    def __init__(self, file: Path, *, origin: Any = None) -> None:
        """Find what an earlier run left, and cut a batch that was being written when it was killed."""
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
        """Add a batch; it outlives the process from here on."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8", newline="\n") as stream:
            head = "" if stream.tell() else self._head
            stream.write(head + json.dumps(list(rows), ensure_ascii=False) + "\n")
        self._rows += len(rows)

    def remove(self) -> None:
        """The log has served."""
        self.file.unlink(missing_ok=True)
        self._rows = 0
