"""What a comparison has sampled and scored so far, on disk: a killed or failed one goes on where it stopped."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def key_of(*facts: Any) -> str:
    """A name for whatever depends on these facts alone (JSON values)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


class Log:
    """A JSONL file of whole batches, in order.

    Args:
        file: where it lies; begun when the first batch is added.
    """

    def __init__(self, file: Path) -> None:
        """Read what an earlier run left, and cut a batch that was being written when it was killed."""
        self.file = file
        self._rows: list[Any] = []
        if not file.is_file():
            return
        end = 0
        with file.open("rb+") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._rows += json.loads(line)
                end += len(line)
            stream.truncate(end)

    def __len__(self) -> int:
        """Rows so far."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Any]:
        """The rows in order."""
        return iter(self._rows)

    def append(self, rows: Sequence[Any]) -> None:
        """Add a batch; it outlives the process from here on."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(list(rows), ensure_ascii=False) + "\n")
        self._rows += rows
