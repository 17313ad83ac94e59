"""The record of a stage: which inputs it was started from and what it wrote."""

import hashlib
import json
from pathlib import Path
from typing import Any

from align.io.atomic import replacing_file
from align.io.manifest import MANIFEST, normalisation_of

_NOT_CONTENT = {"README.md", MANIFEST}
"""Descriptions in a model directory: equal models may differ in them (paths, versions)"""


class StageRecord:
    """One small JSON file per stage, replaced atomically.

    Args:
        file: its path; the file need not exist.
    """

    def __init__(self, file: Path) -> None:
        """Read the file, if there is one."""
        self.file = file
        self._state: dict[str, Any] = {}
        if file.is_file():
            try:
                self._state = json.loads(file.read_text())
            except ValueError:
                self._state = {}  # truncated by a full disk: the stage counts as never run
        self._read = self._state

    def why_stale(self, fingerprint: str, writes: Path) -> str | None:
        """Why the stage must run.

        Args:
            fingerprint: of its current inputs and recipe.
            writes: its output.

        Returns:
            str: the reason; None if inputs, recipe and output are unchanged since it was done.
        """
        if not self._state:
            return "for the first time"
        if self._state["fingerprint"] != fingerprint:
            return "its inputs or its recipe have changed"
        if self._state["state"] != "done":
            return "it did not finish"
        if not writes.exists():
            return f"{writes} is missing"
        if content_hash(writes) != self._state["output"]:
            return f"{writes} has changed since the stage wrote it"
        return None

    def half_done(self, fingerprint: str) -> bool:
        """Whether it was started from the same inputs and recipe and did not finish."""
        return self._state.get("state") == "begun" and self._state["fingerprint"] == fingerprint

    def begin(self, fingerprint: str, **facts: Any) -> None:
        """Record that the stage is running, with further ``facts`` as JSON values."""
        self._write({"state": "begun", "fingerprint": fingerprint} | facts)

    def finish(self, fingerprint: str, output: str, seconds: float, **facts: Any) -> None:
        """Record that the stage is done, with its output's hash and further ``facts`` as JSON values."""
        done = {"state": "done", "fingerprint": fingerprint, "output": output, "seconds": round(seconds, 1)}
        self._write(done | facts)

    def restore(self) -> None:
        """Undo ``begin``: the stage never started."""
        self._write(self._read)

    def _write(self, state: dict[str, Any]) -> None:
        with replacing_file(self.file) as file:
            json.dump(state, file)
        self._state = state


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of a directory's file names and contents.

    Args:
        path: a file or directory; README.md and align.json in a directory are ignored, except a reward model's
            normalisation.

    Returns:
        str: hexadecimal.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if file.name in _NOT_CONTENT:
            if file.name == MANIFEST and (normalisation := normalisation_of(file.parent)):
                digest.update(json.dumps(normalisation).encode())
            continue
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
