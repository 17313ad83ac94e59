"""Model directories made from GGUF files, each once."""

import hashlib
import logging
import os
import time
from functools import lru_cache
from pathlib import Path

from align.io.atomic import creating_directory

VERSION = 1
"""Increased whenever the same file gives another directory"""

_LOG = logging.getLogger(__name__)


def cache_directory() -> Path:
    """Where converted models are kept: ``$ALIGN_CACHE/models``, by default ``~/.cache/align/models``."""
    root = os.environ.get("ALIGN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "align")
    return Path(root).expanduser() / "models"


def converted(file: Path) -> Path:
    """The model directory of a GGUF file, which is written unless the cache has it.

    Its name is that of the file; the folder above it is named after the file's content.

    Args:
        file: in GGUF format, of a language model.

    Returns:
        A whole directory: configuration, weights, tokenizer and manifest.

    Raises:
        ModuleNotFoundError: gguf is not installed.
        ValueError: the file is damaged, or asks for something that is not supported; the line names file and what.
        OSError: the disk is full.
    """
    path = file.resolve()
    found = path.stat()
    digest = _content(str(path), found.st_size, found.st_mtime_ns)
    directory = cache_directory() / f"{digest[:16]}-{VERSION}" / file.stem
    if not directory.is_dir():
        _convert(path, directory, digest)
    return directory


@lru_cache
def _content(path: str, size: int, modified: int) -> str:
    """SHA-256 of a file, computed again if its size or time changes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(path: Path, directory: Path, digest: str) -> None:
    """Write the model directory of a file."""
    from align.io.gguf.reading import open_gguf
    from align.io.manifest import write_manifest
    from align.io.state_files import save_state
    from align.tokenizer import Tokenizer
    from align.tokenizer.files import gguf_spec

    start = time.monotonic()
    opened = open_gguf(path)
    values = opened.metadata.values
    tokenizer = Tokenizer(gguf_spec(path, values))
    source = {
        "file": str(path),
        "sha256": digest,
        "architecture": opened.metadata.architecture,
        "name": values.get("general.name"),
        "licence": values.get("general.license"),
    }
    with creating_directory(directory) as fresh:
        save_state(
            opened.tensors,
            fresh,
            config=opened.config,
            shapes=opened.shapes,
            bos_id=tokenizer.bos_id,
            eos_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
            dtype=opened.dtype,
        )
        tokenizer.save(fresh)
        if licence := source["licence"]:
            # Where lineage looks for it.
            (fresh / "README.md").write_text(f"---\nlicense: {licence}\n---\n\nConverted from {path.name}.\n")
        write_manifest(fresh, {"stage": "foreign", "tokenizer": tokenizer.fingerprint, "gguf": source})
    _LOG.info("%s: converted to %s in %.0f s", path, directory, time.monotonic() - start)
