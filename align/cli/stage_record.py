"""What ``align run`` remembers of a stage: from which inputs it was begun, and what it wrote."""

import hashlib
import json
from pathlib import Path
from typing import Any

from align.io.atomic import replacing_file

_NOT_CONTENT = {"README.md", "align.json"}
"""Files of a model directory that tell of it: two equal models may differ in them (paths, versions)."""


class StageRecord:
    """One small JSON file per stage, replaced atomically.

    Args:
        file: where it lies; it need not exist.
    """

    def __init__(self, file: Path) -> None:
        """Read what is there."""
        self.file = file
        self._state: dict[str, Any] = {}
        if file.is_file():
            try:
                self._state = json.loads(file.read_text())
            except ValueError:
                self._state = {}  # cut short by a full disk: the stage counts as never run

    def why_stale(self, fingerprint: str, writes: Path) -> str | None:
        """Why the stage must run.

        Args:
            fingerprint: of its inputs and recipe now.
            writes: its output.

        Returns:
            str: the reason; None when inputs, recipe and output are as they were when it was done.
        """
        if not self._state:
            return "never run"
        if self._state["fingerprint"] != fingerprint:
            return "its inputs or its recipe changed"
        if self._state["state"] != "done":
            return "it did not end"
        if not writes.exists():
            return f"{writes} is missing"
        if content_hash(writes) != self._state["output"]:
            return f"{writes} is not what the stage wrote"
        return None

    def half_done(self, fingerprint: str) -> bool:
        """Whether it was begun from the same inputs and recipe and did not end."""
        return self._state.get("state") == "begun" and self._state["fingerprint"] == fingerprint

    def begin(self, fingerprint: str) -> None:
        """Remember that it runs."""
        self._write({"state": "begun", "fingerprint": fingerprint})

    def finish(self, fingerprint: str, output: str, seconds: float) -> None:
        """Remember that it is done, with its output's hash."""
        self._write({"state": "done", "fingerprint": fingerprint, "output": output, "seconds": round(seconds, 1)})

    def _write(self, state: dict[str, Any]) -> None:
        with replacing_file(self.file) as file:
            json.dump(state, file)
        self._state = state


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of a directory's file names and contents.

    Args:
        path: what to hash; README.md and align.json inside a directory are left out.

    Returns:
        str: hexadecimal.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if file.name in _NOT_CONTENT:
            continue
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
