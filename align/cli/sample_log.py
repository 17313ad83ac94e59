"""Scored answers on disk while more are sampled: a killed run goes on after the last whole batch."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from align.cli.labelling import Answer


class SampleLog:
    """A hidden JSONL file beside the output: what the answers depend on, then one line a batch of prompts, in order.

    A batch is whole or not there, so the batches after a resume are those of an uninterrupted run, to the last bit.

    Args:
        out: the output; the log is ``.NAME.partial`` beside it.
        origin: everything that the answers depend on; answers of another origin are thrown away.
    """

    def __init__(self, out: Path, origin: Mapping[str, Any]) -> None:
        """Find what an earlier run left."""
        self.file = out.with_name(f".{out.name}.partial")
        self._header = json.dumps({"origin": origin}, sort_keys=True)
        self.done = self._recover()

    def append(self, rows: Sequence[Sequence[Answer]]) -> None:
        """Add a batch: the answers to each of the next prompts. They outlive the process from here on."""
        with self.file.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(rows) + "\n")
        self.done += len(rows)

    def rows(self) -> Iterator[list[Answer]]:
        """The answers to each prompt so far, in order."""
        with self.file.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                for row in json.loads(line):
                    yield [Answer(*fields) for fields in row]

    def remove(self) -> None:
        """The output is whole: the log has served."""
        self.file.unlink(missing_ok=True)

    def _recover(self) -> int:
        """Prompts in whole lines of the same origin; the file is cut after them, or begun anew."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.file.is_file():
            with self.file.open("rb+") as file:
                if file.readline() == self._header.encode() + b"\n":
                    prompts, end = 0, file.tell()
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        prompts, end = prompts + len(json.loads(line)), end + len(line)
                    file.truncate(end)
                    return prompts
        self.file.write_text(self._header + "\n", encoding="utf-8", newline="\n")
        return 0


@contextmanager
def replacing_file(path: Path) -> Iterator[TextIO]:
    """Write a file that takes ``path``'s place, whole, when the block ends well; else the old one stays.

    Args:
        path: the file, there or not.

    Yields:
        TextIO: to write to.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
